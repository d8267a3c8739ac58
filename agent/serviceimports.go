package agent

import "github.com/tombolo-mesh/tombolo/clustermesh"

// imports says which services of the own cluster lead to which exported ones, so
// that a change of an exported service in any cluster has those merged again.
type imports struct {
	of map[clustermesh.ServiceName]clustermesh.ServiceName          // service → what it imports
	by map[clustermesh.ServiceName]map[clustermesh.ServiceName]bool // exported service → its imports
}

func newImports() imports {
	return imports{of: map[clustermesh.ServiceName]clustermesh.ServiceName{}, by: map[clustermesh.ServiceName]map[clustermesh.ServiceName]bool{}}
}

// takeImport notes what a service of the own cluster imports at present.
func (s *State) takeImport(c *clusterState, name clustermesh.ServiceName) {
	if c.peer != nil {
		return // only the own cluster's frontends are used
	}
	var target clustermesh.ServiceName
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeLocal, clustermesh.ScopeExport} {
		if v := c.views[scope]; v != nil {
			if svc := v.Service(name); svc != nil {
				target = clustermesh.ServiceName{}
				if svc.Import != "" {
					target = clustermesh.ServiceName{Namespace: name.Namespace, Name: svc.Import}
				}
			}
		}
	}
	s.imports.set(name, target)
}

func (i *imports) set(name, target clustermesh.ServiceName) {
	old, had := i.of[name]
	if old == target {
		return
	}
	if had {
		delete(i.of, name)
		if delete(i.by[old], name); len(i.by[old]) == 0 {
			delete(i.by, old)
		}
	}
	if target == (clustermesh.ServiceName{}) {
		return
	}
	i.of[name] = target
	if i.by[target] == nil {
		i.by[target] = map[clustermesh.ServiceName]bool{}
	}
	i.by[target][name] = true
}

// touchWithImports has a service merged again, and those that import it.
func (s *State) touchWithImports(name clustermesh.ServiceName) {
	s.touchService(name)
	for importer := range s.imports.by[name] {
		s.touchService(importer)
	}
}
