package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// copyFile is the form of the last-good copy on disk: one line with the SHA-256
// of all that follows, then JSON.
type copyFile struct {
	Cluster  string       `json:"cluster"`
	StoreID  string       `json:"storeID"`  // hexadecimal
	Revision int64        `json:"revision"` // of the store, as of which the records are
	Records  []copyRecord `json:"records"`  // by key
}

// copyRecord is one key. Leased says that it went with a lease.
type copyRecord struct {
	Key    string `json:"key"`
	Value  []byte `json:"value"`
	Leased bool   `json:"leased,omitempty"`
}

const copyHeader = "tombolo-copy-1 "

func (f *copyFile) encode() ([]byte, error) {
	body, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	sum := sha256.Sum256(body)
	return append([]byte(copyHeader+hex.EncodeToString(sum[:])+"\n"), body...), nil
}

// decodeCopy refuses everything that is not whole, or of another cluster.
func decodeCopy(text []byte, cluster string) (*copyFile, error) {
	line, body, _ := bytes.Cut(text, []byte("\n"))
	want, ok := bytes.CutPrefix(line, []byte(copyHeader))
	if !ok {
		return nil, errors.New("it does not begin as a copy does")
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != string(want) {
		return nil, errors.New("its checksum is wrong")
	}
	f := new(copyFile)
	if err := json.Unmarshal(body, f); err != nil {
		return nil, err
	}
	if f.Cluster != cluster {
		return nil, fmt.Errorf("it is of cluster %s, not %s", printable(f.Cluster), cluster)
	}
	return f, nil
}

// readCopy returns nil without an error if there is no file.
func readCopy(path, cluster string) (*copyFile, error) {
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeCopy(text, cluster)
}

// before says whether the copy was taken from the store at that position, or
// from an earlier state of it.
func (f *copyFile) before(at kvstore.Position) bool {
	return f.StoreID == storeIDText(at.StoreID) && f.Revision <= at.Revision
}
