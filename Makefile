# What a change must pass, and how to build what the tests need. `make` lists the targets; .ci/run runs lint and test.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help lint lint-rust lint-deny lint-shell test chaos fuzz bench docs-check collector prometheus

# Tools that are built once lie outside the tree, so that a clean clone finds them.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/runspan
DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lint: lint-shell lint-rust lint-deny ## Format, clippy, rustdoc, licences and sources of dependencies, shell scripts

lint-rust:
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --all-features --document-private-items

# Advisories come from the network: where it is out of reach that is said, and is no failure of the change.
lint-deny: $(DENY)
	$(DENY) --locked check licenses bans sources
	@if timeout 60 $(DENY) --locked fetch db >/dev/null 2>&1; then \
		$(DENY) --locked check --disable-fetch advisories; \
	else \
		echo "WARNING: SECURITY ADVISORIES WERE NOT CHECKED: their database could not be fetched." >&2; \
	fi

# Built under another name and renamed when whole, so that two makes at once do not break each other. Optimised
# little: that halves the build, and its checks take a second all the same.
$(DENY):
	@mkdir -p $(CACHE)
	@echo "building cargo-deny $(DENY_VERSION), once: a few minutes"
	@work=$$(mktemp -d $(CACHE)/building.XXXXXX); trap 'rm -rf "$$work"' EXIT; \
	CARGO_TARGET_DIR="$$work/target" CARGO_PROFILE_RELEASE_LTO=off \
	CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo install --quiet --locked --root "$$work" cargo-deny@$(DENY_VERSION); \
	mv -f "$$work/bin/cargo-deny" $@

# SC2317 takes what a trap calls for unreachable.
lint-shell:
	@command -v shellcheck >/dev/null || tests/apt-install shellcheck
	shellcheck --exclude=SC2317 .ci/run collector/build collector/deliveries dashboards/prometheus/build tests/apt-install tests/node tests/with-services

test: ## All tests, with PostgreSQL, Redis, the Collector and Prometheus: make test ARGS='a_name -- --nocapture'
	tests/with-services cargo test --locked --features services $(ARGS)

chaos: ## Everything goes wrong, by the seed: make chaos SEEDS=500, or SEED=17 for one of them
	tests/with-services cargo test --locked --features services --test chaos -- \
		$(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),30)) $(ARGS)

SECONDS ?= 60
fuzz: ## Look longer for inputs that break something: make fuzz SECONDS=300 (a target; they share the processors)
	RUNSPAN_FUZZ_SECONDS=$(SECONDS) cargo test --locked --test suite fuzz:: -- --nocapture

bench: ## What it costs and how fast it is: make bench ARGS='writer drain' (all parts: about half an hour)
	tests/with-services cargo bench --locked --features services --bench measure -- $(ARGS)

docs-check: ## The page on events and queries against the code and the catalogue; needs no services
	cargo test --locked --test suite docs::

collector: ## Build the Collector of collector/builder.yaml and print its path
	@collector/build

prometheus: ## Build the Prometheus and promtool of dashboards/prometheus/go.mod and print their directory
	@dashboards/prometheus/build
