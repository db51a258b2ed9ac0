# Everything that a fresh machine needs is Python >= 3.11 with pip and venv, and make.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check matrix performance format clean

demo: .venv/package  ## explain the sample scene, offline
	$(BIN)/legrad explain --out demo --overwrite
	@echo "open demo/sample.png"

test: .venv/installed  ## the default test run: two processes, of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: .venv/installed  ## format, lint, types, imports that point down
	$(BIN)/ruff format --check src tests performance tools training
	$(BIN)/ruff check src tests performance tools training
	$(BIN)/python -m mypy
	PYTHONPATH=src:. $(BIN)/lint-imports --no-logo

matrix: .venv/installed  ## every model name of every library against the slow twin: docs/support-matrix.md
	PYTHONPATH=tests $(BIN)/python -m tools.support_matrix

performance: .venv/installed  ## speed and memory against the bare forward and other packages: docs/performance.md
	$(BIN)/python -m performance $(ARGS)

format: .venv/installed
	$(BIN)/ruff format src tests performance tools training
	$(BIN)/ruff check --fix src tests performance tools training

# constraints.txt pins what was tested; without it the newest versions come
.venv/package: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed: .venv/package  # with the tools of developers
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo
