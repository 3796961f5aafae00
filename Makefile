# Each target sets up by itself: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test stress lint bench clean
.DELETE_ON_ERROR:

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"flaxnets needs Python 3.11 or newer, this is {v[0]}.{v[1]}; name another with make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pretrained,captions,sweep,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python -m launch.demo --workdir=runs/demo

# Two processes, of which one runs all tests of a file: they share what its fixtures make.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Several real processes, killed and resumed, and fifty rounds of kills at random: half an hour.
stress: .venv/installed
	$(BIN)/python -m pytest -m stress
	$(BIN)/python -m tests.chaos.run --rounds=50

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m experiments.benchmarks.encoders
	$(BIN)/python -m experiments.benchmarks.run

clean:
	rm -rf .venv runs/demo
