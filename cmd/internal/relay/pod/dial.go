package pod

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"

	"github.com/tombolo-mesh/tombolo/cmd/internal/relay"
)

const (
	// dialTimeout bounds the way through the kube-apiserver, the kubelet and the
	// runtime to the relay's first line.
	dialTimeout = 15 * time.Second
	// goodbye is how long a closed connection's relay may take to end by itself.
	goodbye = time.Second
)

// Dial runs the relay in the target and returns a connection to its socket. ctx
// bounds the dialling alone.
func (c *Cluster) Dial(ctx context.Context, t Target) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no answer within %s", dialTimeout))
	defer cancel()
	life, stop := context.WithCancel(quiet(context.WithoutCancel(ctx)))
	mine, theirs := net.Pipe()
	s := &session{Conn: mine, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.err = c.exec(life, t, theirs, &s.said)
		theirs.Close()
	}()
	// Who does not want to wait any more wakes the reader.
	wake := context.AfterFunc(ctx, func() { mine.SetReadDeadline(time.Unix(1, 0)) })
	s.in = bufio.NewReader(mine)
	line, err := s.in.ReadSlice('\n')
	if !wake() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && string(line) == relay.Greeting {
		mine.SetReadDeadline(time.Time{})
		return s, nil
	}
	first := string(line)
	s.Close()
	if why := context.Cause(ctx); why != nil {
		return nil, fmt.Errorf("cannot reach the %s in pod %s of context %q: %w", t.Program.Text, t.Pod, c.cfg.Context, why)
	}
	return nil, c.dialError(t, first, s.said.String(), s.err)
}

// session is a connection through a relay.
type session struct {
	net.Conn
	in    *bufio.Reader
	stop  func()
	ended chan struct{}
	err   error // how exec ended; valid when ended is closed
	said  words // on standard error
	once  sync.Once
}

func (s *session) Read(p []byte) (int, error) { return s.in.Read(p) }

// Close ends the relay's input, which ends the relay; one that does not answer
// any more is left to itself.
func (s *session) Close() error {
	s.once.Do(func() {
		s.Conn.Close()
		limit := time.AfterFunc(goodbye, s.stop)
		<-s.ended
		limit.Stop()
		s.stop()
	})
	return nil
}

// dialError says why there was no greeting: line is what came instead, said what
// the command wrote to its standard error, err how exec ended.
func (c *Cluster) dialError(t Target, line, said string, err error) error {
	where := fmt.Sprintf("cannot reach the %s in pod %s of context %q", t.Program.Text, t.Pod, c.cfg.Context)
	command := strings.Join(t.Program.Command, " ")
	if why, is := strings.CutPrefix(line, relay.Refusal); is {
		return fmt.Errorf("%s: %s", where, strings.TrimSpace(why))
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return c.kubeError(err, "run a command in pod "+t.Pod, "create and get of pods/exec")
	}
	var exit exec.CodeExitError
	if err == nil || errors.As(err, &exit) {
		why := strings.Join(strings.Fields(line+" "+said), " ")
		if why == "" {
			why = "it ended without a word"
		}
		return fmt.Errorf("%s: its image does not know '%s': %s\nfix: bring Tombolo there to the version of this command", where, command, why)
	}
	return fmt.Errorf("%s: '%s' could not be run in container %s: %w", where, command, t.Program.Container, err)
}

// words keeps the first bytes of what a command says, which name the mistake.
type words struct {
	mu   sync.Mutex
	text []byte
}

func (t *words) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 4096 - len(t.text); room > 0 {
		t.text = append(t.text, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (t *words) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// quiet keeps client-go's own log off the user's terminal: errors are returned.
func quiet(ctx context.Context) context.Context { return klog.NewContext(ctx, logr.Discard()) }
