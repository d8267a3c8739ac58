// Package script holds scripts of whole meshes, in text: Kubernetes YAML of
// several clusters in, records of their stores and tables of their nodes out.
// The folder mesh has the scripts; mesh_test.go lists their commands.
package script
