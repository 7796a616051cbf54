# Set-up and the few commands of the house. Everything needs only python3 (3.11 or newer), make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test check bench format clean

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

# The package's folders lie at the root, where mypy would take them for packages of their own: it is shown a tree of links.
check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/types && mkdir -p build/types/marl_flow
	ln -s "$(CURDIR)"/marl_flow/*.py "$(CURDIR)"/marl_flow/py.typed build/types/marl_flow/
	ln -s "$(CURDIR)"/envs "$(CURDIR)"/datasets "$(CURDIR)"/baselines "$(CURDIR)"/benchmarks build/types/marl_flow/
	cd build/types && "$(CURDIR)"/$(BIN)/mypy --config-file "$(CURDIR)"/pyproject.toml -p marl_flow

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m marl_flow.benchmarks.bench

clean:
	rm -rf $(VENV) build dist *.egg-info
