package podtest

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// serveWebSocket speaks v5.channel.k8s.io: the first byte of a message names its
// stream, and 255 and a stream's number end that stream.
func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request, run func(Streams) metav1.Status) {
	up := websocket.Upgrader{Subprotocols: []string{remotecommand.StreamProtocolV5Name}}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	in, feed := io.Pipe()
	go func() {
		defer feed.Close() // the client has gone
		for {
			_, msg, err := conn.ReadMessage()
			switch {
			case err != nil:
				return
			case len(msg) == 2 && msg[0] == remotecommand.StreamClose && msg[1] == remotecommand.StreamStdIn:
				feed.Close()
			case len(msg) > 0 && msg[0] == remotecommand.StreamStdIn:
				feed.Write(msg[1:])
			}
		}
	}()
	var mu sync.Mutex
	out := func(id byte) io.Writer {
		return writer(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return len(p), conn.WriteMessage(websocket.BinaryMessage, append([]byte{id}, p...))
		})
	}
	st := run(Streams{In: in, Out: out(remotecommand.StreamStdOut), Err: out(remotecommand.StreamStdErr)})
	in.Close()
	text, _ := json.Marshal(st)
	out(remotecommand.StreamErr).Write(text)
	mu.Lock()
	defer mu.Unlock()
	conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// serveSPDY speaks v4.channel.k8s.io: the client opens a stream for each purpose.
func (s *Server) serveSPDY(w http.ResponseWriter, r *http.Request, run func(Streams) metav1.Status) {
	if _, err := httpstream.Handshake(r, w, []string{remotecommand.StreamProtocolV4Name}); err != nil {
		return
	}
	opened := make(chan httpstream.Stream, 4)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(st httpstream.Stream, _ <-chan struct{}) error {
		opened <- st
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	streams := map[string]httpstream.Stream{}
	for len(streams) < 4 {
		select {
		case st := <-opened:
			streams[st.Headers().Get(corev1.StreamType)] = st
		case <-conn.CloseChan():
			return
		}
	}
	st := run(Streams{In: streams[corev1.StreamTypeStdin], Out: streams[corev1.StreamTypeStdout], Err: streams[corev1.StreamTypeStderr]})
	text, _ := json.Marshal(st)
	streams[corev1.StreamTypeError].Write(text)
	for _, each := range streams {
		each.Close()
	}
	<-conn.CloseChan()
}
