package install

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"regexp"
	"strings"

	"github.com/Masterminds/semver/v3"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	release "helm.sh/helm/v4/pkg/release/v1"

	"github.com/tombolo-mesh/tombolo/deploy"
)

// What an installation is called unless somebody wants it otherwise.
const (
	DefaultNamespace = "tombolo-system"
	ReleaseName      = "tombolo"
)

// Chart is the embedded chart as that of a version of Tombolo: its image is the
// one of the same version.
func Chart(version string) (*chart.Chart, error) {
	var files []*archive.BufferedFile
	root, err := fs.Sub(deploy.Chart, "chart")
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, path)
		files = append(files, &archive.BufferedFile{Name: path, Data: data})
		return err
	})
	if err != nil {
		return nil, err
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("the chart in this program is broken: %w", err)
	}
	c.Metadata.AppVersion = version
	c.Metadata.Version = chartVersion(version)
	return c, nil
}

var notInVersion = regexp.MustCompile(`[^0-9A-Za-z-]+`)

// chartVersion makes of any version one that Helm takes: those between releases
// sort before all of them.
func chartVersion(version string) string {
	if v, err := semver.StrictNewVersion(strings.TrimPrefix(version, "v")); err == nil {
		return v.String()
	}
	rest := strings.Trim(notInVersion.ReplaceAllString(version, "-"), "-")
	if rest == "" {
		rest = "dev"
	}
	return "0.0.0-dev." + "v" + rest
}

// RenderOptions are what a rendering without a cluster must be told.
type RenderOptions struct {
	Version, Namespace string
	Kubernetes         string // version; default: Helm's own
	Upgrade            bool
}

// Render is what the chart makes of values, and its notes, with no cluster to ask.
func Render(ctx context.Context, o RenderOptions, values map[string]any) (manifest, notes string, err error) {
	c, err := Chart(o.Version)
	if err != nil {
		return "", "", err
	}
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	cfg.HookOutputFunc = func(_, _, _ string) io.Writer { return io.Discard }
	in := action.NewInstall(cfg)
	in.DryRunStrategy = action.DryRunClient
	in.ReleaseName, in.Namespace, in.IsUpgrade = ReleaseName, o.Namespace, o.Upgrade
	if o.Kubernetes != "" {
		if in.KubeVersion, err = common.ParseKubeVersion(o.Kubernetes); err != nil {
			return "", "", err
		}
	}
	out, err := in.RunWithContext(ctx, c, values)
	if err != nil {
		return "", "", explain(err)
	}
	rel, ok := out.(*release.Release)
	if !ok {
		return "", "", fmt.Errorf("rendering made a %T", out)
	}
	return rel.Manifest, rel.Info.Notes, nil
}

var templateNoise = regexp.MustCompile(`(?s)^.*error calling (?:fail|required|include): `)

// explain leaves of a template's error what the chart says, without the path by
// which Helm came there.
func explain(err error) error {
	if text := err.Error(); templateNoise.MatchString(text) {
		return fmt.Errorf("%s", templateNoise.ReplaceAllString(text, ""))
	}
	return err
}
