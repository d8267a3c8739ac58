// Package pb holds the generated protobuf and gRPC code of the records and of
// the mesh port.
package pb

//go:generate ./gen.sh
