package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/v1alpha1"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// Mesh are the calls that join clusters: those behind `tombolo mesh`.
type Mesh interface {
	Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error)
	Invite(context.Context, *pb.InviteRequest) (*pb.InviteResponse, error)
	JoinMesh(context.Context, *pb.JoinMeshRequest) (*pb.JoinMeshResponse, error)
	RemovePeer(context.Context, *pb.RemovePeerRequest) (*pb.RemovePeerResponse, error)
	// Withdraw takes back a token that nobody has used; one that was stays.
	Withdraw(ctx context.Context, tokenID string) error
}

// Peers joins clusters as the MeshPeers of Tombolo's namespace say. It keeps
// nothing between two passes but when to try again: what is so is read from the
// API server and from the mesh each time, so that it may be ended anywhere.
type Peers struct {
	client *Client
	mesh   Mesh
	log    *slog.Logger
	// tell takes what became of the resources, after each pass; may be nil.
	tell func([]*pb.MeshPeerStatus)
	// Look is how often the reachability of peers is looked at; writing follows only
	// from a change.
	look  time.Duration
	tries map[string]try // by name
}

// try is a failed attempt.
type try struct {
	of    string // what was tried; another one is tried at once
	times int
	next  time.Time
}

const (
	peersLook    = 5 * time.Second
	tryAgain     = 5 * time.Second
	tryAgainMost = 5 * time.Minute
)

// PeersPart is the controller of MeshPeers, for the replica that leads.
func PeersPart(client *Client) apiserver.Part {
	return apiserver.Part{Name: "mesh peers", Leading: true, Run: func(ctx context.Context, on *apiserver.Running) error {
		select {
		case <-on.CacheReady:
		case <-ctx.Done():
			return nil
		}
		p := NewPeers(client, on.Admin, on.Log)
		p.tell = on.MeshPeers
		if p.tell != nil {
			defer p.tell(nil) // another replica says it from now on
		}
		return p.Run(ctx)
	}}
}

// NewPeers makes a controller.
func NewPeers(client *Client, mesh Mesh, log *slog.Logger) *Peers {
	return &Peers{client: client, mesh: mesh, log: log, look: peersLook, tries: make(map[string]try)}
}

func (c *Client) meshPeers(namespace string) *gentype.ClientWithList[*v1alpha1.MeshPeer, *v1alpha1.MeshPeerList] {
	return must(Resource(c, v1alpha1.MeshPeers, namespace,
		func() *v1alpha1.MeshPeer { return &v1alpha1.MeshPeer{} }, func() *v1alpha1.MeshPeerList { return &v1alpha1.MeshPeerList{} }))
}

// Run works until ctx ends.
func (p *Peers) Run(ctx context.Context) error {
	stir := make(chan struct{}, 1)
	changed := func() {
		select {
		case stir <- struct{}{}:
		default:
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{}, 2)
	follow := func(open func(context.Context) (watch.Interface, error)) {
		go func() {
			followChanges(ctx, open, changed)
			done <- struct{}{}
		}()
	}
	follow(func(ctx context.Context) (watch.Interface, error) {
		return p.client.meshPeers(p.client.Namespace).Watch(ctx, metav1.ListOptions{})
	})
	follow(func(ctx context.Context) (watch.Interface, error) {
		// Not the Secrets of Helm's releases, which are large.
		return p.client.Secrets(p.client.Namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "type=Opaque"})
	})
	defer func() { cancel(); <-done; <-done }()
	look := time.NewTicker(p.look)
	defer look.Stop()
	for {
		if err := p.pass(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-stir:
		case <-look.C:
		}
	}
}

// followChanges calls changed when a watch begins, and at each of its events.
func followChanges(ctx context.Context, open func(context.Context) (watch.Interface, error), changed func()) {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		began := time.Now()
		if w, err := open(ctx); err == nil {
			changed()
			for events := w.ResultChan(); events != nil; {
				select {
				case _, open := <-events:
					if open {
						changed()
					} else {
						events = nil
					}
				case <-ctx.Done():
					events = nil
				}
			}
			w.Stop()
		}
		if time.Since(began) > time.Minute {
			wait = time.Second
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// pass brings each MeshPeer one step on. A definition that is not installed is no
// error: then nobody asks for anything.
func (p *Peers) pass(ctx context.Context) error {
	reading, cancel := context.WithTimeout(ctx, RequestTime)
	defer cancel()
	list, err := p.client.meshPeers(p.client.Namespace).List(reading, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		p.told(nil)
		return nil
	}
	if err != nil {
		return fmt.Errorf("list MeshPeers: %w", err)
	}
	st, err := p.mesh.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return err
	}
	there := make(map[string]bool)
	var became []*pb.MeshPeerStatus
	for i := range list.Items {
		mp := &list.Items[i]
		there[mp.Name] = true
		now, err := p.one(ctx, mp, st)
		became = append(became, meshPeerStatus(now))
		if err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			p.log.Warn("MeshPeer could not be served; it is tried again", "meshpeer", mp.Name, "err", err)
		}
	}
	for name := range p.tries {
		if !there[name] {
			delete(p.tries, name)
		}
	}
	p.told(became)
	return nil
}

func (p *Peers) told(became []*pb.MeshPeerStatus) {
	if p.tell != nil {
		p.tell(became)
	}
}

const leaveFinalizer = "tombolo.io/leave"

// one brings one MeshPeer a step on and writes its status if it says something new.
// It returns what the MeshPeer is then.
func (p *Peers) one(ctx context.Context, mp *v1alpha1.MeshPeer, st *pb.StatusResponse) (*v1alpha1.MeshPeer, error) {
	if mp.DeletionTimestamp != nil {
		return p.delete(ctx, mp, st)
	}
	if !hasFinalizer(mp) {
		// Before anything is joined, so that deleting always leaves.
		mp.Finalizers = append(mp.Finalizers, leaveFinalizer)
		updated, err := p.client.meshPeers(mp.Namespace).Update(ctx, mp, metav1.UpdateOptions{})
		if err != nil {
			return mp, fmt.Errorf("finalizer: %w", err)
		}
		mp = updated
	}
	before := mp.Status
	next := mp.DeepCopy()
	peer := findPeer(st, mp.Name)
	var err error
	if peer == nil {
		var joined bool
		if joined, err = p.bringAbout(ctx, next); joined {
			if st, err = p.mesh.Status(ctx, &pb.StatusRequest{}); err != nil {
				return mp, err
			}
			peer = findPeer(st, mp.Name)
		}
	}
	if peer != nil {
		err = p.joined(ctx, next, peer, st)
	}
	if mp.Status.ObservedGeneration != mp.Generation {
		keep := ""
		if mp.Spec.Invite != nil {
			keep = inviteSecret(mp)
		}
		if others := p.uninviteOthers(ctx, mp, keep); others != nil {
			return next, errors.Join(err, others) // the spec is not observed as long as this is to be done
		}
	}
	next.Status.ObservedGeneration = mp.Generation
	return next, errors.Join(err, p.writeStatus(ctx, next, before))
}

func (p *Peers) writeStatus(ctx context.Context, mp *v1alpha1.MeshPeer, before v1alpha1.MeshPeerStatus) error {
	if reflect.DeepEqual(mp.Status, before) {
		return nil
	}
	if _, err := p.client.meshPeers(mp.Namespace).UpdateStatus(ctx, mp, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	return nil
}

// due reports whether of may be tried now: something new at once, the same thing
// after ever longer pauses.
func (p *Peers) due(name, of string) bool {
	t, tried := p.tries[name]
	return !tried || t.of != of || !time.Now().Before(t.next)
}

func (p *Peers) failed(name, of string) {
	t := p.tries[name]
	if t.of != of {
		t = try{of: of}
	}
	t.next = time.Now().Add(min(tryAgain<<min(t.times, 10), tryAgainMost))
	t.times++
	p.tries[name] = t
}

func findPeer(st *pb.StatusResponse, name string) *pb.PeerStatus {
	for _, peer := range st.Peers {
		if peer.Peer.GetName() == name {
			return peer
		}
	}
	return nil
}
