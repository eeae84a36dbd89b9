# Each command works from a clean clone. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup up down demo test check check-nightly fuzz bench bench-day recovery order storm limits drill simulate broken compat

TOOLS := $(CURDIR)/target/tools
# The one that is installed, or one of our own.
DENY  := $(or $(shell command -v cargo-deny),$(TOOLS)/bin/cargo-deny)
FUZZ  := $(or $(shell command -v cargo-fuzz),$(TOOLS)/bin/cargo-fuzz)
DEV   := cargo run --quiet --locked -p longshore-dev --

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: RabbitMQ, Postgres (as root; otherwise say what to install)
	@dev/setup.sh

up: setup ## Start this checkout's own RabbitMQ and Postgres, and print where they are
	@$(DEV) up

down: ## Stop them, and what a demo has left running; their data is kept
	@$(DEV) down

demo: setup ## Show the worker at work, and account for every request (KEEP=1 leaves it running)
	cargo build --locked --workspace --bins
	@$(DEV) demo $(if $(KEEP),--keep)

test: ## Run all tests against a real RabbitMQ and Postgres (they stay up for the next run)
	@dev/setup.sh clients
	cargo test --locked --workspace --features longshore/fail-points --no-fail-fast

check: $(DENY) ## Formatting, lints, documentation, dependencies: all without a warning
	cargo fmt --all -- --check
	cargo fmt --manifest-path fuzz/Cargo.toml -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --workspace --all-targets --features longshore/fail-points -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items
	$(DENY) --locked check bans licenses sources

check-nightly: check fuzz ## The same, and a bounded look for input that breaks something (nightly Rust)

# What is found is left in fuzz/artifacts: keep it in fuzz/corpus once it is mended, where `make test`
# finds it. No sanitizer: no code of ours is unsafe, and without one it is several times as fast.
fuzz: $(FUZZ) ## Look for input that breaks a law of src/*/laws.rs, so long a target: FUZZ_SECONDS=60
	@for target in envelope headers settings admin; do \
	  found="$(CURDIR)/target/fuzz/found/$$target"; mkdir -p "$$found"; \
	  RUSTUP_TOOLCHAIN=nightly $(FUZZ) fuzz run --sanitizer none --target-dir "$(CURDIR)/target/fuzz" \
	    "$$target" "$$found" "$(CURDIR)/fuzz/corpus/$$target" -- \
	    -dict="$(CURDIR)/fuzz/dictionaries/$$target" -max_total_time=$(or $(FUZZ_SECONDS),60) \
	    -max_len=8192 -timeout=30 -rss_limit_mb=1024 -print_final_stats=1; \
	done

bench: setup ## Measure speed, ages and costs on this machine (ARGS=--quick for a look only)
	cargo build --release --locked --workspace --bins
	@"$${CARGO_TARGET_DIR:-target}/release/longshore-dev" bench $(ARGS)

bench-day: setup ## Work off ten million requests in one go (ARGS="--requests 1000000" for a trial)
	cargo build --release --locked --workspace --bins
	@"$${CARGO_TARGET_DIR:-target}/release/longshore-dev" bench-day $(ARGS)

recovery: setup ## Measure how soon work goes on after RabbitMQ and Postgres have come back
	cargo build --locked --workspace --bins
	@$(DEV) recovery $(ARGS)

order: setup ## Show that each user's requests keep their order, under kills (minutes; ARGS=--help)
	cargo build --release --locked --workspace --bins
	@"$${CARGO_TARGET_DIR:-target}/release/longshore-dev" order $(ARGS)

storm: setup ## Show what a dependency in trouble costs the others (55 minutes; ARGS="--only dead" for one)
	cargo build --release --locked --workspace --bins
	@"$${CARGO_TARGET_DIR:-target}/release/longshore-dev" storm $(ARGS)

limits: setup ## Measure what limits and shares promise: one that learns, a user who floods (minutes)
	cargo build --release --locked --workspace --bins
	@"$${CARGO_TARGET_DIR:-target}/release/longshore-dev" limits $(ARGS)

drill: setup ## Prove under faults that nothing is lost and nothing done twice (minutes; ARGS=--help)
	cargo build --release --locked --workspace --bins
	@"$${CARGO_TARGET_DIR:-target}/release/longshore-dev" drill $(ARGS)

simulate: ## Run the corridor in a world of chance (SEEDS=10000, FIRST=0; SEED=n tells the story of one)
	SEEDS=$(or $(SEEDS),10000) FIRST=$(or $(FIRST),0) SEED=$(SEED) RUST_BACKTRACE=0 \
	  cargo test --locked --lib simulation::tests::no_seed_breaks_a_rule -- --exact --nocapture

broken: setup ## Break each rule in a copy, and see that the tests notice (minutes; ARGS=NAME for one)
	@$(DEV) broken $(ARGS)

compat: ## Run the tests against other versions of RabbitMQ and Postgres (as root; half an hour)
	@dev/setup.sh clients compat
	@$(DEV) compat $(ARGS)

# Takes some minutes, once a checkout. A debug build: it is used for seconds and built for minutes.
$(TOOLS)/bin/cargo-deny:
	cargo install --locked --debug --root $(TOOLS) cargo-deny

$(TOOLS)/bin/cargo-fuzz:
	cargo install --locked --debug --root $(TOOLS) cargo-fuzz
