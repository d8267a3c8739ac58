package apiserver

import "context"

var _ NodeKnower = (*registry)(nil)

// KnowsNode implements NodeKnower: a node that the source no longer has gets no
// further certificate.
func (g *registry) KnowsNode(ctx context.Context, node string) error {
	var known bool
	if err := g.core.ask(ctx, func() { known = g.core.d.nodes[node] != nil }); err != nil {
		return err
	}
	if !known {
		r := unknownNode(node)
		r.What = "certificate of node " + node + " not renewed"
		return r
	}
	return nil
}
