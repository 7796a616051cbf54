# Set-up and the few commands of the house. Everything needs only python3 (3.11 or newer), make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: install quickstart test test-slow test-all check mypy pyright docs bench format clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"marl_flow needs Python 3.11 or newer, found {sys.version.split()[0]}: set PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

quickstart: install
	$(BIN)/marl-flow quickstart

# What finds mistakes quickly: under three minutes on two cores.
test: check
	$(PYTEST) -m "not slow"

# What `make test` leaves out: long commands, kills, whole datasets, installations.
test-slow: install
	$(PYTEST) -m slow

test-all: test test-slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory --jobs 2 mypy pyright

mypy: install
	$(BIN)/mypy -p marl_flow

pyright: install
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/sphinx-build --builder html --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

bench: install
	$(BIN)/python -m marl_flow.benchmarks.speed

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
