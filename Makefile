# Everything runs in a virtual environment of its own, .venv, which the first call makes.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

PYTEST_OPTIONS ?= -n 3 --dist worksteal
ROUNDS         ?= 300
SECONDS        ?= 30
MINUTES        ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test search fuzz lint format crash soak bench bench-peers clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## See it: a conversation, kill -9 in mid-answer, the same stream resumed, a fork
	@$(BIN)/python examples/demo.py

test: $(VENV)/.dev ## Run the whole test suite
	@$(BIN)/python -m pytest $(PYTEST_OPTIONS)

search: $(VENV)/.dev ## Look for new counterexamples: the property tests with other, and more, examples
	@EXAMPLES=2000 API_MACHINE_EXAMPLES=200 $(BIN)/python -m pytest $(PYTEST_OPTIONS) --timeout=0 -m "not embedded" \
	  --hypothesis-profile=search tests/unit tests/fuzz tests/simulation/test_api_machine.py tests/acceptance/test_schemathesis.py

fuzz: $(VENV)/.dev ## Give the parsers odd bytes, guided by coverage, SECONDS for each
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet 'atheris>=3'
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

lint: $(VENV)/.dev ## Style, types and layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## Rewrite the code in its own style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

crash: $(VENV)/.dev ## Kill the server, and sandboxes, at every interesting point, ROUNDS times
	@$(BIN)/python -m tests.simulation.crash --rounds $(ROUNDS)

soak: $(VENV)/.dev ## MINUTES of mixed load with faults: does anything grow, stick, or stay behind?
	@$(BIN)/python -m tests.soak --minutes $(MINUTES)

bench: $(VENV)/.dev ## The table of figures
	@$(BIN)/python -m benchmarks

bench-peers: $(VENV)/.dev ## The same beside OGX and LiteLLM, which it installs into .venv-peers (a gigabyte)
	@$(BIN)/python -m benchmarks.peers

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Stateroom needs Python 3.11 or newer. Name one: make PYTHON=python3.12"; exit 1; }
	@echo "Making a virtual environment in $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

# The pip that comes with Python 3.11 does not know dependency groups: it is brought up to date first.
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "Installing Stateroom and its development tools into $(VENV); the first time takes a minute …"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[demo]' --group dev
	@touch $@

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing Stateroom into $(VENV); the first time takes a minute …"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[demo]'
	@touch $@
