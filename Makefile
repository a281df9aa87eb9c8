# Checks for every change, and builds of the tools that the tests need. `make` lists the targets; .ci/run runs lint and test.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help lint lint-rust lint-features lint-deny lint-shell test chaos fuzz bench docs-check collector prometheus

# Tools are built once and cached outside the tree, so that a clean clone reuses them.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/runspan
DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lint: lint-shell lint-rust lint-features lint-deny ## Format, clippy, rustdoc, features, licences and sources of dependencies, shell scripts

lint-rust:
	cargo fmt --check --all
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --all-features --document-private-items

# The library with each useful set of features; lint-rust covers all of them together, `make test` the default. A bot that
# uses none of them must not compile what only a process of runspan's own needs.
lint-features:
	@for features in '' relay runtime redis relay,runtime; do \
		echo "clippy --no-default-features --features '$$features'"; \
		cargo clippy --quiet --locked --lib --no-default-features --features "$$features" -- -D warnings; \
	done
	@! cargo tree --locked --edges normal --no-default-features --prefix none \
		| grep -E '^(axum|clap|comfy-table|redis|reqwest|tokio|tonic) '

# Advisories come from the network: if it is unreachable, print a warning and do not fail.
lint-deny: $(DENY)
	$(DENY) --locked check licenses bans sources
	@if timeout 60 $(DENY) --locked fetch db >/dev/null 2>&1; then \
		$(DENY) --locked check --disable-fetch advisories; \
	else \
		echo "WARNING: SECURITY ADVISORIES WERE NOT CHECKED: their database could not be fetched." >&2; \
	fi

# Built under a temporary name and renamed when complete, so that concurrent makes do not break each other. Low optimisation
# halves the build time, and its checks still take only a second.
$(DENY):
	@mkdir -p $(CACHE)
	@echo "building cargo-deny $(DENY_VERSION), once: a few minutes"
	@work=$$(mktemp -d $(CACHE)/building.XXXXXX); trap 'rm -rf "$$work"' EXIT; \
	CARGO_TARGET_DIR="$$work/target" CARGO_PROFILE_RELEASE_LTO=off \
	CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo install --quiet --locked --root "$$work" cargo-deny@$(DENY_VERSION); \
	mv -f "$$work/bin/cargo-deny" $@

# SC2317 reports functions called by a trap as unreachable.
lint-shell:
	@command -v shellcheck >/dev/null || tests/apt-install shellcheck
	shellcheck --exclude=SC2317 .ci/run collector/build collector/deliveries dashboards/prometheus/build tests/apt-install tests/node tests/with-services

test: ## All tests, with PostgreSQL, Redis, the Collector and Prometheus: make test ARGS='a_name -- --nocapture'
	tests/with-services cargo test --locked --features services $(ARGS)

chaos: ## Inject random faults from a seed: make chaos SEEDS=500, or SEED=17 for one of them
	tests/with-services cargo test --locked --features services --test chaos -- \
		$(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),30)) $(ARGS)

SECONDS ?= 60
fuzz: ## Run the property tests longer: make fuzz SECONDS=300 (per target; they share the CPU)
	RUNSPAN_FUZZ_SECONDS=$(SECONDS) cargo test --locked --test suite fuzz:: -- --nocapture

bench: ## Measure cost and speed: make bench ARGS='writer drain' (all parts: about half an hour)
	tests/with-services cargo bench --locked --features services --bench measure -- $(ARGS)

docs-check: ## Check the documentation against the code and the catalogue; needs no services
	cargo test --locked --test suite docs::

collector: ## Build the Collector of collector/builder.yaml and print its path
	@collector/build

prometheus: ## Build the Prometheus and promtool of dashboards/prometheus/go.mod and print their directory
	@dashboards/prometheus/build
