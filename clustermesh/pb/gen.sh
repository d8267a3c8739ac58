#!/bin/sh
# Makes the Go of the .proto files with the plugins that go.mod names.
# Needs protoc (Debian: protobuf-compiler).
set -e
cd "$(dirname "$0")/../.."
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
go build -o "$plugins/" google.golang.org/protobuf/cmd/protoc-gen-go \
	google.golang.org/grpc/cmd/protoc-gen-go-grpc github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto
module=github.com/tombolo-mesh/tombolo
PATH="$plugins:$PATH"
protoc -I clustermesh/pb --go_out=. --go_opt=module=$module --go-grpc_out=. --go-grpc_opt=module=$module clustermesh/pb/*.proto
# Only what is stored is many enough for generated marshalling to matter.
protoc -I clustermesh/pb --go-vtproto_out=. \
	--go-vtproto_opt=module=$module,features=marshal+unmarshal+unmarshal_unsafe+size clustermesh/pb/records.proto clustermesh/pb/private.proto
# The compiler's version is no part of the code.
sed -i -E '/^\/\/ (-|\t)? *protoc +v[0-9]/d; /^\/\/ \tprotoc +v[0-9]/d' clustermesh/pb/*.pb.go
