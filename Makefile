# `make demo` and `make test` set up their environment by themselves; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
CONFIG ?= configs/phantom.py:cdm

BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test test-slow lint clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(READY)

# Phantom patients -> MRM -> MDN -> C-UNet and M1 -> evaluation -> one unseen patient as NIfTI.
demo: $(READY)
	$(BIN)/python -m experiments.demo --config=$(CONFIG) --workdir=$(RUN)

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow'

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
