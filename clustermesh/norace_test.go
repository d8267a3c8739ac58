//go:build !race

package clustermesh

const raceEnabled = false
