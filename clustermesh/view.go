package clustermesh

import "iter"

// View is what one cluster says in one scope.
type View struct{}

func (v *View) Name() string                                  { return "" }
func (v *View) Scope() Scope                                  { return "" }
func (v *View) Len() int                                      { return 0 }
func (v *View) Cluster() *Cluster                             { return nil }
func (v *View) Node(name string) *Node                        { return nil }
func (v *View) NodeByNumber(n uint16) *Node                   { return nil }
func (v *View) Nodes() iter.Seq[*Node]                        { return nil }
func (v *View) Service(n ServiceName) *Service                { return nil }
func (v *View) Services() iter.Seq[*Service]                  { return nil }
func (v *View) Slices(n ServiceName) iter.Seq[*EndpointSlice] { return nil }
func (v *View) Address(n AddressName) (Address, bool)         { return Address{}, false }
func (v *View) Addresses() iter.Seq[Address]                  { return nil }
func (v *View) Identity(id Identity) (IdentityRecord, bool)   { return IdentityRecord{}, false }
func (v *View) Identities() iter.Seq[IdentityRecord]          { return nil }
func (v *View) Peer(name string) *Peer                        { return nil }
func (v *View) Peers() iter.Seq[*Peer]                        { return nil }
func (v *View) Workloads() iter.Seq[*Workload]                { return nil }
func (v *View) Policies() iter.Seq[*Policy]                   { return nil }
func (v *View) Apply(c Change) error                          { return nil }
