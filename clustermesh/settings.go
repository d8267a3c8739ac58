package clustermesh

// MinHealthy is a parsed min-healthy setting.
type MinHealthy struct {
	Percent bool
	Value   int
}

// ParseMinHealthy reads "", a count or a percentage.
func ParseMinHealthy(s string) (MinHealthy, error) { return MinHealthy{}, nil }

// ParseFailover reads a comma-separated list of cluster names, at most MaxFailover.
func ParseFailover(s string) ([]string, error) { return nil, nil }

// ParseAffinity reads local, remote or none.
func ParseAffinity(s string) (Affinity, error) { return Affinity(s), nil }

// MaxFailover is how many clusters a failover list may name.
const MaxFailover = 2
