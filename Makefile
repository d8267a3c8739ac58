# Tombolo. Two commands do all the set-up: `make demo` and `make test`.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
# Without gRPC's request tracing page, and the templates it links: a fifth less to keep in memory.
TAGS     = grpcnotrace
BIN      = bin
RUNS     = 5
PROGRAMS = tombolo tombolo-apiserver tombolo-agent tombolo-cni

.PHONY: build demo test test-race verify bench generate clean help

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the four programs into bin/ (static)
	CGO_ENABLED=0 $(GO) build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS))

demo: build ## the main job, end to end, on this machine; needs root
	@$(BIN)/tombolo demo $(DEMO)

test: ## every rung of the test ladder; what needs root is skipped, and counted, without it
	$(GO) run ./test/runtests ./...

test-race: ## all but the labs of real processes under the race detector; needs a C compiler
	$(GO) run ./test/runtests -race $$($(GO) list ./... | grep -v -e /test/lab -e /test/sim)
	$(GO) run ./test/runtests -race ./test/sim -args -seeds 20

bench: build ## figures of control plane and data plane beside yardsticks of the same run; RUNS=5 ONLY=sync,…
	$(GO) run ./test/bench -bin $(BIN) -runs $(RUNS) -only '$(ONLY)'

verify: ## generated code and objects are up to date; format, vet, staticcheck, imports, tidy, known vulnerabilities
	./.ci/verify

generate: ## protobuf, gRPC and BPF objects; needs protoc and clang-19
	$(GO) generate ./...

clean: ## remove what was built
	rm -rf $(BIN)
