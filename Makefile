# Set-up and the few commands of the house. Everything needs only python3 (3.11 or newer), make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test check docs bench format clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"marl_flow needs Python 3.11 or newer, found {sys.version.split()[0]}: set PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

quickstart: install
	$(BIN)/marl-flow quickstart

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p marl_flow

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
