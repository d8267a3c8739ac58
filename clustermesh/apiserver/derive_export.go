package apiserver

import (
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// setExport takes a ServiceExport; it is about the Service of its name.
func (d *deriver) setExport(name objectName, exp *v1beta1.ServiceExport, at clustermesh.Origin) {
	d.touch(serviceUnit(name), at)
	if exp == nil {
		delete(d.exports, name)
		return
	}
	d.exports[name] = exp
}

// exportWithout is a ServiceExport whose Service is missing, or none to export.
func (d *deriver) exportWithout(name objectName, why string, y *yield) {
	if d.exports[name] != nil {
		y.problem(Problem{Object: Ref{KindServiceExport, name.Namespace, name.Name}.String(), What: "exports nothing", Why: why,
			Fix: "create the Service, or delete the ServiceExport"})
	}
}

// multicluster fills in what the Multi-Cluster Services API says of a service:
// that it is exported, or that its addresses are an import's.
func (d *deriver) multicluster(name objectName, svc *corev1.Service, r *clustermesh.Service, y *yield) {
	if r.Import = mcs.Imports(svc); r.Import != "" {
		r.Global = false // its backends are the exporters'
		for i := range r.Ports {
			r.Ports[i].Name = mcs.PortName(svc, r.Ports[i].Name)
		}
		d.exportWithout(name, "the Service is itself an import, of "+printable(r.Import), y)
		return
	}
	exp := d.exports[name]
	if exp == nil {
		return
	}
	stored := d.storedExport(name)
	e, err := mcs.Record(exp, svc)
	if err != nil {
		y.problem(Problem{Object: Ref{KindServiceExport, name.Namespace, name.Name}.String(), What: "refused", Why: printable(err.Error()),
			Fix: "correct the ServiceExport; until then what was exported stays so"})
		r.Export = stored
		return
	}
	if e.Created == 0 { // nobody has noted when it was made: when it was first seen, then
		e.Created = y.at
		if stored != nil {
			e.Created = stored.Created
		}
	}
	r.Export = e
}

// storedExport is what was last published of a service's export; nil if it was
// not exported.
func (d *deriver) storedExport(name objectName) *clustermesh.Export {
	if d.anewService(name, KindServiceExport, name.Name) {
		return nil
	}
	key := clustermesh.KeyOf(clustermesh.ScopeExport, d.cfg.Cluster, &clustermesh.Service{Name: clustermesh.ServiceName(name)})
	value := d.cfg.Stored(key.String())
	if value == nil {
		return nil
	}
	if r, err := clustermesh.Decode(key, value); err == nil {
		return r.(*clustermesh.Service).Export
	}
	return nil
}

// nameless takes hostnames away that nobody asks for: DNS names the endpoints of
// exported headless services one by one, and no others.
func nameless(r *clustermesh.Service, slice *clustermesh.EndpointSlice) {
	if r.Headless && r.Export != nil {
		return
	}
	for i := range slice.Endpoints {
		slice.Endpoints[i].Hostname = clustermesh.Hostname{}
	}
}
