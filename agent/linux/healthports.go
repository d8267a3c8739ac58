package linux

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// healthPortRetry is how soon a port that is taken is tried again.
const healthPortRetry = 5 * time.Second

var _ agent.HealthPorts = (*HealthPorts)(nil)

// HealthPorts answers load balancers at health check ports, as kube-proxy does:
// whether this node has endpoints of a service whose traffic from outside stays
// on the node it comes to. It is an agent.HealthPorts.
type HealthPorts struct {
	addresses func() []netip.Addr // to listen on; none = all of the node
	healthy   func() bool
	log       *slog.Logger
	wake      chan struct{}

	mu      sync.Mutex
	wanted  map[clustermesh.ServiceName]agent.HealthPort
	changed map[clustermesh.ServiceName]struct{}
	failed  map[clustermesh.ServiceName]error

	servers map[clustermesh.ServiceName]*healthServer // of Run alone
}

// NewHealthPorts makes the answers of a node. addresses are where to listen: nil,
// or none, is everywhere. healthy says whether this node takes part at all.
func NewHealthPorts(addresses func() []netip.Addr, healthy func() bool, log *slog.Logger) *HealthPorts {
	return &HealthPorts{
		addresses: addresses, healthy: healthy, log: log, wake: make(chan struct{}, 1),
		wanted: map[clustermesh.ServiceName]agent.HealthPort{}, changed: map[clustermesh.ServiceName]struct{}{},
		failed: map[clustermesh.ServiceName]error{}, servers: map[clustermesh.ServiceName]*healthServer{},
	}
}

// Set implements agent.HealthPorts.
func (h *HealthPorts) Set(changes []agent.HealthPort) {
	h.mu.Lock()
	for _, p := range changes {
		if p.Port == 0 {
			delete(h.wanted, p.Service)
		} else {
			h.wanted[p.Service] = p
		}
		h.changed[p.Service] = struct{}{}
	}
	h.mu.Unlock()
	h.again()
}

// AddressesChanged has the ports listened on anew.
func (h *HealthPorts) AddressesChanged() {
	h.mu.Lock()
	for name := range h.wanted {
		h.changed[name] = struct{}{}
	}
	h.mu.Unlock()
	h.again()
}

func (h *HealthPorts) again() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Problems implements agent.HealthPorts.
func (h *HealthPorts) Problems() []clustermesh.Problem {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []clustermesh.Problem
	names := slices.SortedFunc(maps.Keys(h.failed), func(a, b clustermesh.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	for _, name := range names {
		err := h.failed[name]
		out = append(out, clustermesh.Problem{
			What: fmt.Sprintf("health check port %d of service %s is not served", h.wanted[name].Port, name), Why: err.Error(),
			Fix: "see who has the port on this node, and stop it; it is tried again by itself. Until then load balancers take this node for one without endpoints",
		})
	}
	return out
}

// Run listens until ctx ends, then closes all ports.
func (h *HealthPorts) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer func() {
		for _, s := range h.servers {
			s.close()
		}
	}()
	for {
		if h.step() {
			timer.Reset(healthPortRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		case <-timer.C:
			h.mu.Lock()
			for name := range h.failed {
				h.changed[name] = struct{}{}
			}
			h.mu.Unlock()
		}
	}
}

// step brings the listeners in line with what is wanted: those that go first, as
// their ports may be another's now. It reports whether any could not be opened.
func (h *HealthPorts) step() (retry bool) {
	h.mu.Lock()
	changed := h.changed
	h.changed = map[clustermesh.ServiceName]struct{}{}
	wanted := map[clustermesh.ServiceName]agent.HealthPort{}
	for name := range changed {
		if p, is := h.wanted[name]; is {
			wanted[name] = p
		}
		delete(h.failed, name)
	}
	h.mu.Unlock()
	at := h.listenAt()
	for name := range changed {
		if s := h.servers[name]; s != nil && !s.serves(wanted[name].Port, at) {
			s.close()
			delete(h.servers, name)
		}
	}
	for name, p := range wanted {
		if h.servers[name] != nil {
			continue // it looks up the count itself
		}
		s, err := h.open(p, at)
		if err != nil {
			h.mu.Lock()
			h.failed[name] = err
			h.mu.Unlock()
			h.log.Warn("cannot listen on a health check port; trying again", "service", name.String(), "port", p.Port, "error", err)
			continue
		}
		h.servers[name] = s
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.failed) > 0
}

func (h *HealthPorts) listenAt() []netip.Addr {
	if h.addresses != nil {
		if at := h.addresses(); len(at) > 0 {
			return at
		}
	}
	return []netip.Addr{{}}
}

// healthServer is one service's port.
type healthServer struct {
	port   uint16
	at     []netip.Addr
	server *http.Server
}

func (s *healthServer) serves(port uint16, at []netip.Addr) bool {
	return s.port == port && slices.Equal(s.at, at)
}

func (s *healthServer) close() { s.server.Close() }

func (h *HealthPorts) open(p agent.HealthPort, at []netip.Addr) (*healthServer, error) {
	var listeners []net.Listener
	for _, a := range at {
		host := ""
		if a.IsValid() {
			host = a.String()
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(p.Port))))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("listen: %w", err)
		}
		listeners = append(listeners, l)
	}
	s := &healthServer{port: p.Port, at: at, server: &http.Server{
		Handler: h.handler(p.Service), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}}
	for _, l := range listeners {
		go func() {
			if err := s.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				h.log.Warn("a health check port is no longer served", "service", p.Service.String(), "error", err)
			}
		}()
	}
	return s, nil
}

// healthAnswer is what kube-proxy answers.
type healthAnswer struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func (h *HealthPorts) handler(name clustermesh.ServiceName) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		h.mu.Lock()
		count := h.wanted[name].Endpoints
		h.mu.Unlock()
		healthy := h.healthy == nil || h.healthy()
		answer := healthAnswer{LocalEndpoints: count, ServiceProxyHealthy: healthy}
		answer.Service.Namespace, answer.Service.Name = name.Namespace, name.Name
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(count))
		if count == 0 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(answer) // whoever asked may be gone
	}
}
