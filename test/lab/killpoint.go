package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// steps are the system calls by which a process changes anything outside itself:
// maps, programs and links; routes and devices; files and pins; the tunnel's peers
// and what it tells others. Between two of them it may die at any instruction, and
// nobody sees a difference.
var steps = map[int32]string{
	unix.SYS_BPF: "bpf", unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg", unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_FSYNC: "fsync", unix.SYS_MOUNT: "mount",
}

// Steps counts the steps of an agent.
type Steps struct {
	done  chan struct{}
	count atomic.Int64

	mu  sync.Mutex
	err error
	at  string
}

// Count is how many steps it has begun.
func (s *Steps) Count() int { return int(s.count.Load()) }

// Killed waits until the agent is dead, and says before which step it died. One
// that ended by itself is an error.
func (s *Steps) Killed(ctx context.Context) (at string, err error) {
	select {
	case <-s.done:
	case <-ctx.Done():
		return "", fmt.Errorf("the agent did not come to its step: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == "" && s.err == nil {
		return "", fmt.Errorf("the agent ended by itself after %d steps", s.Count())
	}
	return s.at, s.err
}

// LaunchAgentUntil starts the agent and kills it when it is about to do its nth
// step; 0 lets it live, and counts. It does not wait. The kernel holds each step
// until it was counted, so no two are taken for one (seccomp_unotify(2), Linux 5.5).
func (n *Node) LaunchAgentUntil(ctx context.Context, nth int) (*Steps, error) {
	argv, err := n.agentArgv(ctx)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inR.Close()
	defer inW.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer outR.Close()
	p, err := n.host.start(n.Dir, "agent", inR, outW, append([]string{exe, workloadArg, "steps"}, argv...)...)
	outW.Close()
	if err != nil {
		return nil, err
	}
	n.agent = p
	listener, err := takeListener(p.Pid(), outR)
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("watch the steps of the agent: %w; it said: %s", err, p.tail())
	}
	s := &Steps{done: make(chan struct{})}
	go s.watch(p, listener, nth)
	_, err = inW.Write([]byte{'\n'}) // go
	return s, err
}

// takeListener copies the descriptor that the process names on its output.
func takeListener(pid int, out *os.File) (int, error) {
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return -1, err
	}
	there, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return -1, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, there, 0)
}

// notice and verdict are struct seccomp_notif and seccomp_notif_resp of
// linux/seccomp.h.
type notice struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type verdict struct {
	id, val uint64
	err     int32
	flags   uint32
}

func (s *Steps) watch(p *Process, listener, nth int) {
	defer close(s.done)
	defer unix.Close(listener)
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			<-p.Done() // nobody is left who could do a step
			return
		}
		var step notice
		if err := control(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&step)); err != nil {
			continue // its thread is gone by now
		}
		if s.count.Add(1) == int64(nth) {
			p.Kill()
			s.mu.Lock()
			s.at = steps[step.nr]
			s.mu.Unlock()
			return
		}
		// The step is judged by nobody: going on is safe (see the manual's warning).
		err := control(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&verdict{id: step.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			s.mu.Lock()
			s.err = fmt.Errorf("let a step pass: %w", err)
			s.mu.Unlock()
			p.Kill()
			return
		}
	}
}

func control(fd int, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno != unix.EINTR {
			if errno != 0 {
				return errno
			}
			return nil
		}
	}
}

// stepped becomes the command of its arguments, each step of which is held until
// whoever has the listener lets it pass. It says the listener's number and waits.
func stepped(argv []string) error {
	runtime.LockOSThread() // the filter is this thread's, which becomes the command
	filter := stepFilter()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	line := strconv.Itoa(int(fd)) + "\n"
	// writev is none of the steps.
	if _, err := unix.Writev(1, [][]byte{[]byte(line)}); err != nil {
		return err
	}
	var b [1]byte
	if _, err := unix.Read(0, b[:]); err != nil {
		return err
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

// stepFilter asks the listener about steps, and lets all else pass.
func stepFilter() []unix.SockFilter {
	const number = 0 // offset in struct seccomp_data
	out := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number}}
	left := len(steps)
	for nr := range steps {
		left--
		out = append(out, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jt: uint8(left + 1)})
	}
	return append(out,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
}
