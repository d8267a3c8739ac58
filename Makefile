# Tombolo. Two commands do all the set-up: `make demo` and `make test`.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
# Without gRPC's request tracing page, and the templates it links: a fifth less to keep in memory.
TAGS     = grpcnotrace
BIN      = bin
RUNS     = 5
PROGRAMS = tombolo tombolo-apiserver tombolo-agent tombolo-cni tombolo-install

# What kube-proxy the data plane is compared with: test/bench/kubeproxy, a module of its own.
KUBERNETES = $(shell awk '$$2 == "k8s.io/kubernetes" {print $$3}' test/bench/kubeproxy/go.mod)
KUBE_LD    = -s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES) -X k8s.io/component-base/version.gitTreeState=clean

IMAGE    = tombolo.io/tombolo

.PHONY: build image demo test test-race test-faults verify bench bench-dataplane kubernetes-lab test-kubernetes test-kube-apiserver kustomize generate clean help

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the programs into bin/ (static)
	CGO_ENABLED=0 $(GO) build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS))

image: build ## the container image as an archive, bin/tombolo-image.tar; needs no container tool
	$(GO) run ./deploy/image -bin $(BIN) -repository $(IMAGE) -version '$(VERSION)' -revision '$(shell git rev-parse HEAD 2>/dev/null)' -o $(BIN)/tombolo-image.tar

demo: build ## the main job, end to end, on this machine; needs root
	@$(BIN)/tombolo demo $(DEMO)

test: ## every rung of the test ladder; what needs root is skipped, and counted, without it
	$(GO) run ./test/runtests ./...

test-race: ## all but the labs of real processes, the judges and what links Helm (minutes to build) under the race detector; needs a C compiler
	$(GO) run ./test/runtests -race $$($(GO) list ./... | grep -v -e /test/lab -e /test/sim -e /test/judge -e /deploy/install -e /tombolo-install -e /test/kubernetes)
	$(GO) run ./test/runtests -race ./test/sim -args -seeds 20

bench: build ## figures of control plane and data plane beside yardsticks of the same run; RUNS=5 ONLY=sync,…
	$(GO) run ./test/bench -bin $(BIN) -runs $(RUNS) -only '$(ONLY)'

# bench-dataplane needs root and, for kube-proxy, Debian's nftables and iptables. SERVICES=1,1000 RULES=0,100 SECONDS=0.5
# CPU=0 OUT=figures.json ONLY=… (sections paths, packets, capacity; variants by letter: b,e).
bench-dataplane: $(if $(QUICK),,$(BIN)/kube-proxy) ## pod to pod beside kube-proxy and a plain route, needs root; RUNS=5 ONLY=… QUICK=1: two minutes
	$(GO) build -o $(BIN)/bench-dataplane ./test/bench/dataplane
	$(BIN)/bench-dataplane -kube-proxy $(BIN)/kube-proxy $(if $(QUICK),-quick,-runs $(RUNS)) $(if $(ONLY),-only '$(ONLY)') \
		$(if $(SERVICES),-services $(SERVICES)) $(if $(RULES),-rules $(RULES)) $(if $(SECONDS),-each $(SECONDS)s) $(if $(CPU),-cpu $(CPU)) $(if $(OUT),-o $(OUT))

$(BIN)/kube-proxy: test/bench/kubeproxy/go.mod # some minutes, once
	cd test/bench/kubeproxy && CGO_ENABLED=0 nice $(GO) build -trimpath -ldflags '$(KUBE_LD)' -o $(abspath $@) k8s.io/kubernetes/cmd/kube-proxy

# Further: SERVICES=10,10000 TRIALS=50 MINUTES=10 ONLY=node-link,… LIST=1; QUICK=1: a few trials, ten minutes.
test-faults: $(if $(LIST),,build) ## break a mesh of real processes in every way that Tombolo promises to bear; promised beside measured; needs root, two hours; QUICK=1
	$(GO) build -o $(BIN)/test-faults ./test/faults
	$(BIN)/test-faults -bin $(BIN) $(if $(LIST),-list) $(if $(QUICK),-trials 5 -services 10 -minutes 0.5) $(if $(SERVICES),-services $(SERVICES)) \
		$(if $(TRIALS),-trials $(TRIALS)) $(if $(MINUTES),-minutes $(MINUTES)) $(if $(ONLY),-only '$(ONLY)')

kubernetes-lab: ## build real Kubernetes for test-kubernetes, once, 20 minutes; into .cache/kubernetes, or LAB_BIN=…
	test/kubernetes/lab/build.sh

test-kube-apiserver: ## the Go tests that want a real kube-apiserver, which they restart; needs root and kubernetes-lab
	test/kubernetes/kube-apiserver.sh

# Further: DUAL=1 CHAINED=1 RUN=… KEEP=1 LIST=1 ECHO_IMAGE=… OTHER=… SET=key=value,… LAB_BIN=…
test-kubernetes: $(if $(LIST),,build image) ## install, join, break and remove Tombolo on real Kubernetes, needs root and kubernetes-lab; or CONTEXTS=a,b
	$(GO) build -o $(BIN)/test-kubernetes-suite ./test/kubernetes
	$(BIN)/test-kubernetes-suite -bin $(BIN) -image $(BIN)/tombolo-image.tar $(if $(CONTEXTS),-contexts $(CONTEXTS)) $(if $(DUAL),-dual) $(if $(CHAINED),-chained) \
		$(if $(RUN),-run '$(RUN)') $(if $(KEEP),-keep) $(if $(LIST),-list) $(if $(ECHO_IMAGE),-echo-image $(ECHO_IMAGE)) $(if $(OTHER),-other $(OTHER)) $(if $(SET),-set '$(SET)')

verify: ## generated code and objects are up to date; format, vet, staticcheck, imports, tidy, known vulnerabilities
	./.ci/verify

kustomize: ## deploy/kustomize and the chart's golden renderings, from the chart
	$(GO) test ./deploy/install -run 'TestRendered|TestKustomizeBase' -update

generate: ## protobuf, gRPC and BPF objects; needs protoc and clang-19
	$(GO) generate ./...

clean: ## remove what was built
	rm -rf $(BIN)
