# One environment, .venv, for everything; made once, and made anew when what it holds is named anew.
PYTHON := $(shell sh scripts/check_system.sh --python)
BIN := .venv/bin
# Peers of one swarm share the cores: one thread each keeps them from fighting over them.
export OMP_NUM_THREADS ?= 1
ifeq ($(shell uname -s),Darwin)
# Homebrew's GMP lies where the compiler does not look by itself.
export CPATH := $(shell brew --prefix)/include:$(CPATH)
export LIBRARY_PATH := $(shell brew --prefix)/lib:$(LIBRARY_PATH)
endif

.PHONY: demo fuzz test bench sweep lint ruff types contracts system clean

demo: .venv/.installed
	$(BIN)/python -m p2p_node.demo

test: .venv/.installed
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4

# SECONDS of each target; what is found lies in .fuzz/found.
fuzz: SECONDS ?= 90
fuzz: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzzing --seconds $(SECONDS)

bench: .venv/.installed
	$(BIN)/python -m benchmarks

# Small worlds of every scenario with many seeds; stops at the first that breaks a promise.
SEEDS ?= 1000
sweep: .venv/.installed
	$(BIN)/p2p-node swarm sweep examples/sim/*.toml --seeds $(SEEDS) --peers 24 --minutes 1.5

lint: ruff types contracts

ruff: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/mypy

contracts: .venv/.installed
	$(BIN)/lint-imports

# What only the system can bring is checked first, and every time: it takes a moment.
system:
	@sh scripts/check_system.sh

.venv/.installed: pyproject.toml constraints.txt | system
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
