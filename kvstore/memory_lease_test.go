package kvstore

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestLeaseTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		l, err := m.Grant(t.Context(), 1500*time.Millisecond)
		must(t, err)
		_, err = m.Commit(t.Context(), Put("a", nil, l.ID()), Put("b", nil, l.ID()), Put("c", nil, 0))
		must(t, err)
		at := m.Position().Revision

		time.Sleep(1900 * time.Millisecond)
		left, err := l.KeepAlive(t.Context())
		if err != nil || left != 2*time.Second {
			t.Fatalf("%v left, %v, want 2 s: the time to live is rounded up", left, err)
		}
		time.Sleep(1999 * time.Millisecond)
		synctest.Wait()
		if m.Len() != 3 {
			t.Fatal("the lease ended early")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if m.Len() != 1 || m.Position().Revision != at+1 {
			t.Errorf("%d keys at revision %d, want 1 at %d", m.Len(), m.Position().Revision, at+1)
		}
		if _, err := l.KeepAlive(t.Context()); !errors.Is(err, ErrLeaseNotFound) {
			t.Errorf("keep alive: %v, want ErrLeaseNotFound", err)
		}
		if err := l.Revoke(t.Context()); !errors.Is(err, ErrLeaseNotFound) {
			t.Errorf("revoke: %v, want ErrLeaseNotFound", err)
		}
		if _, err := m.Grant(t.Context(), 0); err == nil {
			t.Error("a lease of no time was granted")
		}
	})
}

// A key moves with its last put, from lease to lease and off them.
func TestLeaseOfTheLastPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryOptions{})
		one, err := m.Grant(t.Context(), time.Second)
		must(t, err)
		two, err := m.Grant(t.Context(), time.Minute)
		must(t, err)
		for _, lease := range []int64{one.ID(), two.ID()} {
			_, err := m.Commit(t.Context(), Put("moved", nil, lease))
			must(t, err)
		}
		_, err = m.Commit(t.Context(), Put("deleted", nil, one.ID()))
		must(t, err)
		_, err = m.Commit(t.Context(), Delete("deleted"))
		must(t, err)
		put(t, m, "deleted", "by nobody")
		time.Sleep(2 * time.Second)
		if m.Len() != 2 {
			t.Fatalf("%d keys, want both: the first lease has none any more", m.Len())
		}
		must(t, two.Revoke(t.Context()))
		if m.Len() != 1 {
			t.Errorf("%d keys after the second lease, want 1", m.Len())
		}
		m.Close()
	})
}
