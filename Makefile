# Thin wrappers: each target is the command one would type.
CARGO ?= cargo

.PHONY: help setup setup-build run chat cluster test style test-browser test-autobahn test-upgrade test-proxies test-nginx-parity test-runtimes test-webhook-outage test-hung-backends test-tls-scanners test-cert-swap test-power-cut test-slow-disk lint docs fmt fuzz package
.PHONY: sim-scale soak-cluster-sim soak-cluster soak-kill soak-kill-cluster bench bench-cluster bench-million bench-vs bench-store bench-recovery bench-micro clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Install what build and tests need (Debian or Ubuntu, needs root or sudo)
	scripts/setup.sh

setup-build: # What the build needs, without what the tests do
	scripts/setup.sh --build

# The profile `quick` is for looking and trying: without link-time optimisation it takes a fraction of the time. What is measured or
# installed is built with --release.
run: setup-build ## Build and start a gateway on 127.0.0.1:7700
	$(CARGO) build --profile quick --locked --bin gateway --bin chat
	target/quick/gateway

chat: ## Talk through a running gateway: make chat USER_ID=1
	$(CARGO) run --profile quick --locked --bin chat -- --user $(or $(USER_ID),1)

cluster: setup ## Three gateways, a router and a Redis Cluster on loopback, until Ctrl-C
	$(CARGO) build --profile quick --locked --bin gateway --bin router --bin chat
	scripts/cluster.sh

# Most tests wait for processes they have started: with twice as many as cores at a time, the cores did nothing for much of it.
test: export RUST_TEST_THREADS ?= $(shell echo $$((3 * $$(nproc) + 1)))
# Clippy as the compiler of this workspace: what it lints it builds, so that nothing is looked at twice, as with `make lint` and a build
# behind it. CLIPPY_ARGS is how `cargo clippy` hands on what stands behind its `--`.
test: export RUSTC_WORKSPACE_WRAPPER = clippy-driver
test: export CLIPPY_ARGS = -Dwarnings__CLIPPY_HACKERY__
test: setup style ## Everything that must pass before a commit
	$(CARGO) test --workspace --locked --all-targets --no-run
	$(CARGO) test --workspace --locked
	npm test --silent --prefix client/js

test-browser: setup ## client/js and the page of --demo in Chromium, which it installs (five minutes)
	$(CARGO) build --profile quick --locked --bin gateway
	scripts/test-browser.sh

test-runtimes: setup ## The JavaScript client in Bun and Deno, which it installs, at a node that drains (three minutes)
	scripts/test-runtimes.sh

test-autobahn: setup ## The cases of the Autobahn test suite against the WebSocket codec (half a minute)
	$(CARGO) build --profile quick --locked --package trunkline-gateway --example websocket_echo
	scripts/test-autobahn.sh

test-upgrade: setup ## Nodes of another build (FROM=commit or tag) and of this one in one cluster, below traffic; builds both (twenty minutes)
	scripts/test-upgrade.sh "$(FROM)"

test-proxies: setup ## The configurations of docs/proxies.md with nginx and HAProxy, which it installs (a minute)
	$(CARGO) build --profile quick --locked --bin gateway
	scripts/test-proxies.sh

test-nginx-parity: setup ## The same calls over the same servers by nginx and by the gateway: picks and failures side by side (a minute)
	$(CARGO) build --profile quick --locked --bin gateway
	scripts/test-nginx-parity.py target/quick/gateway

test-tls-scanners: setup ## testssl.sh, sslyze, OpenSSL and GnuTLS against the port for clients; installs them (five minutes)
	$(CARGO) build --profile quick --locked --bin gateway
	scripts/test-tls.sh

test-cert-swap: setup ## Certificates exchanged below 10,000 clients over WSS: none ends, the new one is shown within a second (a minute)
	$(CARGO) build --profile quick --locked --bin gateway --bin bench
	scripts/test-cert-swap.py target/quick/gateway target/quick/bench

test-webhook-outage: setup ## A receiver of webhooks that is down for ten minutes, and a gateway that is killed (SECS=, SEED=; half an hour)
	$(CARGO) build --profile quick --locked --bin gateway
	scripts/test-webhook-outage.py target/quick/gateway $(if $(SECS),--secs $(SECS)) $(if $(SEED),--seed $(SEED))

test-hung-backends: setup ## HTTP servers and webhooks that never answer: what messages between clients feel of it (ROUNDS=; a minute and a half)
	$(CARGO) build --profile quick --locked --bin gateway --bin bench
	scripts/test-hung-backends.py target/quick/gateway target/quick/bench $(if $(ROUNDS),--rounds $(ROUNDS))

test-power-cut: setup ## Power cuts below a gateway with --data-dir: what was answered for is there (CUTS=, MESSAGES=, SEED=; root, a minute)
	$(CARGO) build --profile quick --locked --bin gateway
	scripts/test-power-cut.py target/quick/gateway $(if $(CUTS),--cuts $(CUTS)) $(if $(MESSAGES),--messages $(MESSAGES)) \
		$(if $(SEED),--seed $(SEED))

test-slow-disk: setup ## A disk that stalls for 5 s, is broken, full and read-only below a gateway with --data-dir (SECS=; root, two minutes)
	$(CARGO) build --profile quick --locked --bin gateway
	scripts/test-slow-disk.py target/quick/gateway $(if $(SECS),--secs $(SECS))

style: setup # Formatting and documents
	$(CARGO) fmt --all --check
	scripts/check-lines.py
	scripts/check-docs.py
	scripts/check-circles.py
	scripts/test-figures.py
	scripts/figures.py --check

lint: style ## Formatting, documents and clippy, warnings as errors
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

docs: setup ## Write the references of settings, flags and metrics in docs/ from the code, and the code of the control messages
	TRUNKLINE_WRITE_DOCS=1 $(CARGO) test --workspace --locked --lib --bins --test gateway --test router --test wire -- \
		the_reference_of the_metrics_of_nodes_in_a_cluster the_metrics_are_clean the_code_of_the_control_messages

.PHONY: package
package: ## The two crates that applications build on, as they would be published, built from what would be uploaded
	$(CARGO) package --locked -p trunkline-proto -p trunkline-client

fmt: ## Format
	$(CARGO) fmt --all

fuzz: ## Fuzz each target for a minute, or TARGETS= alone (SECS=60; RUNS= inputs instead; needs cargo-fuzz)
	RUNS=$(RUNS) scripts/fuzz.sh $(if $(RUNS),$(SECS),$(or $(SECS),60)) $(TARGETS)

sim-scale: setup ## A hundred nodes of 64 shards in virtual time: records, bytes and time of a crash, a join and a rolling restart
	TRUNKLINE_SCALE=1 $(CARGO) test --locked -p trunkline-core --lib a_hundred_nodes -- --nocapture

soak-cluster-sim: setup ## The simulator of several nodes for an hour (SECS=3600), a new seed each time; prints the seeds
	TRUNKLINE_CLUSTER_SOAK_SECS=$(or $(SECS),3600) $(CARGO) test --locked -p trunkline-core --lib cluster_soak -- --nocapture

soak-cluster: setup ## Nodes paused, cut off and without Redis for a minute each, below traffic (ten minutes)
	TRUNKLINE_TROUBLE_SECS=60 $(CARGO) test --locked -p trunkline-gateway --test gateway cluster_trouble:: -- --test-threads 1

# What is killed, and when, follows from the seed and from how fast messages are settled.
soak-kill soak-kill-cluster: export TRUNKLINE_SOAK_MESSAGES = $(MESSAGES)
soak-kill soak-kill-cluster: export TRUNKLINE_SOAK_KILLS = $(KILLS)
soak-kill soak-kill-cluster: export TRUNKLINE_SOAK_SEED = $(or $(SEED),$(shell date +%s))

soak-kill: MESSAGES ?= 1000000
soak-kill: KILLS ?= 200
soak-kill: setup ## A million messages answered for under 200 kills of a gateway with --data-dir (MESSAGES=, KILLS=, SEED=)
	$(CARGO) test --locked -p trunkline-gateway --test gateway soak_kill::what_was_answered_for_comes_once_however_often_the_gateway \
		-- --ignored --nocapture

soak-kill-cluster: MESSAGES ?= 100000
soak-kill-cluster: KILLS ?= 40
soak-kill-cluster: setup ## The same with three nodes and a Redis Cluster, kills of nodes and of masters (MESSAGES=, KILLS=, SEED=)
	$(CARGO) test --locked -p trunkline-gateway --test gateway soak_kill::what_was_answered_for_comes_once_however_often_nodes \
		-- --ignored --nocapture

bench: ## All figures of the README and of docs/figures.md, which it writes anew (an hour, a quiet machine)
	$(CARGO) build --release --locked --bin gateway --bin bench
	scripts/bench.sh

bench-cluster: ## Messages across nodes beside those within one, and logins with presence in Redis (some minutes)
	$(CARGO) build --release --locked --bin gateway --bin bench
	scripts/bench-cluster.sh

bench-million: ## A million clients in one gateway, and a storm of 200,000 (root, 15 GiB, half an hour)
	$(CARGO) build --release --locked --bin gateway --bin bench
	scripts/bench-million.sh

bench-vs: ## Floor, gateway and every other server that is installed, side by side (some minutes)
	$(CARGO) build --release --locked --bin gateway --bin bench
	scripts/bench-vs.sh

bench-store: ## Messages for users who are not there: kept beside JetStream and Redis, read back, and after a storm (some minutes)
	$(CARGO) build --release --locked --bin gateway --bin bench
	scripts/bench.sh benches/results store

bench-recovery: ## Time from the start of a gateway that was killed with a GiB of messages in its folder until it serves (BYTES=; a minute)
	$(CARGO) build --release --locked --bin gateway
	scripts/bench-recovery.py target/release/gateway $(if $(BYTES),--bytes $(BYTES))

bench-micro: ## Micro-benchmarks: decode, encode, routing, timer wheel
	$(CARGO) bench --workspace --locked

clean: ## Remove what was built
	$(CARGO) clean
