# `make demo` and `make test` are all a fresh machine with Python 3.11+ needs.
PYTHON ?= $(shell for v in 3.13 3.12 3.11; do command -v python$$v >/dev/null 2>&1 && python$$v -c '' >/dev/null 2>&1 && echo python$$v && break; done || echo python3)
VENV ?= .venv
PYTEST ?=
# How many tests run at once; PYTEST="-n 0" for one after the other.
WORKERS := -n auto --maxprocesses 4 --dist loadfile
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Types of what needs PyTorch, where it is installed.
CHECK_TORCH = if $(BIN)/python -c 'import torch' 2>/dev/null; then $(BIN)/pyright -p asyncloop/torch --pythonpath $(BIN)/python; fi

.PHONY: demo test lint format bench bench-quick soak clean

demo: $(VENV)/.demo ## install and train an MLP on handwritten digits
	$(BIN)/asyncloop run examples/digits/cfg.toml

test: $(VENV)/.test ## everything that must hold: lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(CHECK_TORCH)
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(CHECK_TORCH)

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## measure asyncloop beside the systems people use: tables, bench/results, docs/img (35 minutes)
	$(BIN)/python -m bench --charts docs/img

bench-quick: $(VENV)/.demo ## a selection of it in two minutes, with the peers that are installed
	$(BIN)/python -m bench --quick

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(PIP) install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --quiet -e . --group dev
	touch $@

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet -e . --group bench
	touch $@

soak: $(VENV)/.test ## kill a thousand runs at random instants and resume them (15 minutes)
	$(BIN)/python tests/faults/kills.py --runs 1000

clean:
	rm -rf $(VENV) build dist
