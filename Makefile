# Ringway's commands. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# A toolchain that rustup made is not on root's path everywhere.
export PATH := $(PATH):$(HOME)/.cargo/bin

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest
SOURCES := $(shell find crates -name '*.rs' -o -name Cargo.toml) Cargo.toml $(wildcard Cargo.lock) pyproject.toml

.PHONY: help
help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: system
system:  ## install what is missing of Debian's packages (root), or name it
	@tools/system

.PHONY: build
build: $(BIN)/.ringway-built  ## build the command, .venv/bin/ringway

.PHONY: run
run: build  ## serve a disk to a real guest and watch it: the demonstration
	@tools/system guest kernel
	@$(BIN)/ringway demo

.PHONY: test
test: build libvirt faulty  ## everything, with the repeats reduced
	@tools/system
	cargo test --release --locked --workspace --exclude ringway-py --exclude ringway-fuzz --exclude ringway-loom
	cargo test --profile fuzz --locked -p ringway-fuzz -p ringway-loom
	$(PYTEST) -n auto --dist worksteal

.PHONY: test-long
test-long: export RINGWAY_LONG := 1
test-long: test  ## everything, at the counts that the project promises

.PHONY: test-unit
test-unit: build  ## the fast ones, without root
	$(PYTEST) -n auto tests/unit

.PHONY: test-guest
test-guest: build libvirt  ## the ones with real guests
	@tools/system guest kernel net
	$(PYTEST) -n auto --dist worksteal tests/guest

.PHONY: libvirt
libvirt: $(BIN)/.ringway-libvirt  ## the binding that guests' domains are reached by

.PHONY: faulty
faulty:  ## the core with fault points, for the tests that kill at them
	cargo build --quiet --locked --profile faulty -p ringway-py --features fault-points

.PHONY: fuzz
fuzz: SECONDS ?= 300
fuzz: build  ## fuzz all targets, SECONDS=300 in all; crashes end up in build/fuzz
	@tools/system build fuzz
	$(BIN)/python tools/fuzz.py $(SECONDS)

.PHONY: check
check: build  ## lint, types, format, stubs and layering
	@tools/system build check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest ringway._core
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p ringway-core --features fault-points -- -D warnings
	$(PYTEST) tests/style

.PHONY: bench
bench: build  ## the ring alone, then the target against qemu-storage-daemon
	@tools/system guest
	cargo bench --locked -p ringway-core
	$(BIN)/ringway bench

.PHONY: bench-host
bench-host: ENDPOINTS ?= 100
bench-host: build  ## a host's endpoints against rtslib and targetcli; ENDPOINTS=1000 takes an hour
	@tools/system guest kernel
	@mkdir -p build
	$(BIN)/python -m ringway.bench.host --endpoints $(ENDPOINTS) --save build/host.json

.PHONY: wheel
wheel: $(BIN)/.ringway-tools  ## a wheel for machines without Rust, below build/wheels
	$(BIN)/maturin build --release --locked --out build/wheels

.PHONY: clean
clean:  ## remove what these commands made in the checkout
	rm -rf $(VENV) target build .mypy_cache .ruff_cache .pytest_cache .hypothesis src/ringway/_core*.so

# The interpreter and the tools: rebuilt when the project names others.
$(BIN)/.ringway-tools: pyproject.toml tools/venv
	@tools/system build
	tools/venv $(VENV)
	@touch $@

# Compiled with libvirt's own headers, which whoever only builds or checks need not have.
$(BIN)/.ringway-libvirt: $(BIN)/.ringway-tools
	@tools/system libvirt
	$(BIN)/python -m pip install --quiet --group libvirt
	@touch $@

# The editable install: Python sources are used as they lie, so only Rust's make it stale.
$(BIN)/.ringway-built: $(BIN)/.ringway-tools $(SOURCES)
	@tools/system build
	PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked
	@touch $@
