# make setup | demo | test | lint | coverage | audit | bench
#
# Everything runs in .venv, created with `python3 -m venv` if it is missing.
#   make PYTHON=python3.12 setup          create it with another interpreter
#   PYTEST_ADDOPTS="-k resume" make test  pass arguments to pytest

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SIDE_BY_SIDE = --numprocesses "$$($(BIN)/python -c 'import os; print(min(8, os.cpu_count() * 2))')" --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test lint coverage audit bench

setup: $(INSTALLED)

# The stamp is newer than the requirement files while .venv satisfies them.
$(INSTALLED): requirements.txt requirements-optional.txt requirements-dev.txt constraints.txt | $(BIN)/pip
	@echo "installing into .venv; the first time takes minutes, most of them for torch"
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	@touch $@
	@echo "installed in .venv: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"

$(BIN)/pip:
	$(PYTHON) -m venv .venv

# These options of accelerate launch are its defaults; without them it warns and lists them.
demo: $(INSTALLED)
	rm -rf runs/digits
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		train_accelerate.py --config recipes/digits.yaml
	$(BIN)/python analyze.py runs/digits

# Test files in parallel, two per core and at most eight: they mostly wait for processes that die, time out or write to
# disk. Files with slow tests run first (tests/conftest.py).
test: $(INSTALLED)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# The same tests with coverage, including the processes that they start.
coverage: $(INSTALLED)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov --cov-report=term:skip-covered --cov-fail-under=90

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of the pinned versions; asks the package index.
audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

# A few random kills (the published result has 30) and the throughput on the digits: about ten minutes on two cores.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/kill_test.py --kills 4
	$(BIN)/python benchmarks/throughput.py
