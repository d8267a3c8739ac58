package apiserver

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// waitingRoom answers in the place of a server that cannot start yet: it is alive,
// it is not ready, and its status says what it waits for. Without it, whoever asks
// would meet closed ports, and Kubernetes would restart what only waits.
//
// What cannot be listened on is left out: the server itself will say so.
type waitingRoom struct {
	server *server

	mu      sync.Mutex
	problem Problem

	stops []func() // once it is open
}

// say has the room tell of a problem, and opens it the first time.
func (w *waitingRoom) say(p Problem) {
	w.mu.Lock()
	p.Since = w.problem.Since
	if p.Since.IsZero() {
		p.Since = time.Now()
	}
	w.problem = p
	w.mu.Unlock()
	if w.stops == nil {
		w.stops = []func(){}
		w.openAdmin()
		w.openProbes()
	}
}

// leave ends the answers, so that the server can give its own on the same ports.
func (w *waitingRoom) leave() {
	for _, stop := range w.stops {
		stop()
	}
	w.stops = nil
}

func (w *waitingRoom) present() Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.problem
}

func (w *waitingRoom) openAdmin() {
	l, err := ListenAdmin(w.server.cfg.Socket)
	if err != nil {
		w.server.log.Warn("the status cannot be asked for while the CA is awaited", "err", err)
		return
	}
	refuse := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if info.FullMethod == pb.Admin_Status_FullMethodName {
			return handler(ctx, req)
		}
		p := w.present()
		return nil, Refuse(codes.Unavailable, p.What, p.Fix, "%s", p.Why)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(refuse))
	pb.RegisterAdminServer(s, waitingAdmin{room: w})
	w.serve(func() error { return s.Serve(l) }, s.Stop)
}

func (w *waitingRoom) openProbes() {
	if w.server.cfg.Metrics == "" {
		return
	}
	l, err := net.Listen("tcp", w.server.cfg.Metrics)
	if err != nil {
		w.server.log.Warn("readiness cannot be asked for while the CA is awaited", "err", err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	handler := probes(func() string { return w.present().Text() }, nil)
	w.serve(func() error { return serveProbes(ctx, l, handler) }, cancel)
}

func (w *waitingRoom) serve(run func() error, end func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			w.server.log.Warn("answers while the CA is awaited ended", "err", err)
		}
	}()
	w.stops = append(w.stops, func() { end(); <-done })
}

// waitingAdmin is the one admin call that is answered meanwhile.
type waitingAdmin struct {
	pb.UnimplementedAdminServer
	room *waitingRoom
}

func (a waitingAdmin) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	s, p := a.room.server, a.room.present()
	return &pb.StatusResponse{
		Cluster: &pb.Cluster{Name: s.cfg.Cluster, Id: uint32(s.cfg.ID)}, Store: s.handle.Text, Version: s.cfg.Version,
		Problems: []*pb.Problem{{Object: p.Object, What: p.What, Why: p.Why, Fix: p.Fix, Since: unixNano(p.Since)}},
	}, nil
}
