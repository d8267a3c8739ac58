// Package deploy carries the Helm chart inside the program, so that `tombolo
// install` needs no network and always fits its own version.
package deploy

import "embed"

// Chart is the folder chart/.
//
//go:embed all:chart
var Chart embed.FS
