package apiserver

import (
	"context"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// stored is what is in force under key: what the publisher of this term was told
// last, as the store is always a little behind, or what the watch cache holds. A
// record that has moved to the other scope is in force there alone.
func (c *core) stored(key string) []byte {
	if _, moved := c.moves.due[key]; moved {
		return nil
	}
	return c.present(key)
}

// present is as stored, and also tells of what has moved and is still there.
func (c *core) present(key string) []byte {
	// Until the publisher has been told all, the store may be one that is new and
	// empty, and the cache shows what was in force before.
	if c.pub != nil && c.listed {
		if value, known := c.pub.Meant(key); known {
			return value
		}
	}
	kv, err := getKey(context.Background(), c.cache, key)
	if err != nil || kv.Key == "" {
		return nil
	}
	return kv.Value
}

func (c *core) storedUnder(prefix string) []string {
	var keys []string
	// The cache answers from memory; before it was filled there is nothing.
	_, _ = c.cache.List(context.Background(), prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			keys = append(keys, kv.Key)
		}
		return nil
	})
	return keys
}
