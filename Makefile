# Every target sets up what it needs from nothing: `make demo` or `make test` is all one types on a fresh clone.
#
#   PYTHON=python3.12 make test   another interpreter (3.11 or newer)
#   ARGS="-k curvature" make test what pytest or the demo is given besides

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A second call is quick: an environment is built again only when its declaration changes.
RUNTIME := $(VENV)/.learnmech-runtime
DEVELOPMENT := $(VENV)/.learnmech-development
PEERS := $(VENV)/.learnmech-peers
DECLARATION := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench harmless gpu-check lint format types imports docs docs-check check build clean distclean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(DEVELOPMENT) ## Build the development environment (every target does this by itself)

demo: $(RUNTIME) ## Train on real data, measure, store, judge and show it on a live page
	$(BIN)/learnmech demo $(ARGS)

test: $(DEVELOPMENT) ## Run the tests
	$(BIN)/pytest $(ARGS)

bench: $(PEERS) ## Measure what probes cost, and curvature side by side with its peers, into benchmarks/
	$(BIN)/python -m benchmarks $(ARGS)

harmless: $(DEVELOPMENT) ## Train with and without the monitor in every setting, and compare bit by bit
	$(BIN)/python -m benchmarks.harmless $(ARGS)

gpu-check: $(RUNTIME) ## Check on an accelerator what only it can show, and write benchmarks/gpu_check.md
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

lint: $(DEVELOPMENT) imports ## Check style and the rules between components
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEVELOPMENT) ## Write the files as `make lint` wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(DEVELOPMENT) ## Check types with mypy (strict) and pyright
	$(BIN)/mypy
	$(BIN)/pyright

imports: $(DEVELOPMENT) ## Check that components import only what they may
	$(BIN)/lint-imports --no-logo

docs: $(DEVELOPMENT) ## Write what is generated from the code: docs/reference, Grafana's dashboards, the page's panels
	$(BIN)/python -m scripts.reference
	$(BIN)/learnmech dashboards build

docs-check: $(DEVELOPMENT) ## Run the code in the documentation, follow its links, count its entries
	$(BIN)/python -m scripts.docs_check

check: lint types docs-check test ## All of the above, as CI does

build: $(DEVELOPMENT) ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m hatchling build

clean: ## Remove what tools and runs left behind
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .learnmech lightning_logs
	rm -f learnmech.db learnmech.db-wal learnmech.db-shm
	find core probes collector dashboards lab tests scripts -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove the environment too
	rm -rf $(VENV)

# --- environments -----------------------------------------------------------------------------------------------------

# A pip that knows dependency groups (25.1) and constrains the build itself (25.3).
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "learnmech needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Type: PYTHON=python3.12 make ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(DECLARATION) | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt 'pip>=25.3'
	$(PIP) install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[all]'
	@touch $@

$(DEVELOPMENT): $(DECLARATION) $(RUNTIME)
	$(PIP) install --quiet --constraint constraints.txt --group dev
	@touch $@

# What curvature is compared with. Without dependencies: see the file.
$(PEERS): benchmarks/peers.txt $(RUNTIME)
	$(PIP) install --quiet --no-deps --requirement benchmarks/peers.txt
	@touch $@
