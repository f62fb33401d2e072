# `make demo` and `make test` set up their environment by themselves; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
CONFIG ?= configs/phantom.py:cdm,length=demo
SMOKE = configs/phantom.py:cdm,smoke

BIN = $(VENV)/bin
READY = $(VENV)/.ready

# Python keeps what it compiles of modules, for the many processes that tests start.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-slow test-parity test-browser test-versions lint docs clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(READY)

# Phantom patients -> MRM -> MDN -> C-UNet and M1 -> evaluation -> one unseen patient as NIfTI.
demo: $(READY)
	JAX_NUM_CPU_DEVICES=2 $(BIN)/python -m experiments.demo --config=$(CONFIG) --workdir=$(RUN)

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow'

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

# Layers against PyTorch's, and DDIM, with XLA's optimizations, which other tests do without; a small
# download on Python 3.11, a large one on others.
test-parity: $(READY)
	$(BIN)/pip install --quiet --editable '.[dev,parity]'
	CDM_OPTIMIZED=1 $(BIN)/python -m pytest tests/parity tests/diffusion

# The report in Chromium, which has to be there (Debian: apt-get install chromium).
test-browser: $(READY)
	$(BIN)/pip install --quiet --editable '.[dev,browser]'
	$(BIN)/python -m pytest tests/browser

# The main job, smallest, with the oldest versions that pyproject.toml allows, and with the newest ones
# on the newest Python.
test-versions:
	mkdir -p build
	python3.11 -m venv --clear build/oldest
	python3.11 tests/oldest.py > build/oldest.txt
	build/oldest/bin/pip install --quiet --editable '.[demo]' --constraint build/oldest.txt
	build/oldest/bin/python -m experiments.demo --config=$(SMOKE) --workdir=runs/oldest
	python3.13 -m venv --clear build/newest
	build/newest/bin/pip install --quiet --editable '.[demo]'
	build/newest/bin/python -m experiments.demo --config=$(SMOKE) --workdir=runs/newest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/docs/index.html; a warning is an error.
docs: $(READY)
	$(BIN)/pip install --quiet --editable '.[dev,docs]'
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs

clean:
	rm -rf $(VENV) runs build docs/generated docs/reference/api
