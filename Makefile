# Each target sets up by itself: `make demo` and `make test` work on a fresh clone.
# Another Python, as in `make test PYTHON=python3.13`, has an environment of its own, .venv-3.13.
PYTHON ?= python3
# Its path, also where pyenv has it without having activated it.
INTERPRETER := $(shell command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; print(sys.executable)' \
	2>/dev/null || ls -d "$$(pyenv root 2>/dev/null)"/versions/*/bin/$(PYTHON) 2>/dev/null | sort -V | tail -n 1)
VERSION := $(if $(INTERPRETER),$(shell $(INTERPRETER) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
ALLOWED := 3.11 3.12 3.13 3.14
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(VERSION)

.PHONY: demo test test-all test-core stress lint bench docs clean check-python
.DELETE_ON_ERROR:

$(INSTALLED): pyproject.toml constraints.txt | check-python
	test -x $(BIN)/python$(VERSION) || $(INTERPRETER) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pretrained,captions,sweep,dev]'
	touch $@

check-python:
	@test -n "$(VERSION)" || { echo "$(PYTHON) is not installed; name another with make PYTHON=python3.13" >&2; exit 1; }
	@test -n "$(filter $(VERSION),$(ALLOWED))" || { echo "flaxnets needs Python 3.11 to 3.14, $(PYTHON) is $(VERSION); name another with make PYTHON=python3.13" >&2; exit 1; }

demo: $(INSTALLED)
	$(BIN)/python -m launch.demo --workdir=runs/demo

# All but the slow tests. Two processes, of which one runs all tests of a file: they share what its
# fixtures make.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# As continuous integration has it.
test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not stress'

# The fast core, for a second Python: tests of flaxnets and data that start no programs.
test-core: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not (stress or slow or subprocess)' tests/flaxnets tests/data

# Several real processes, killed and resumed, and eighty rounds of kills at random: an hour.
stress: $(INSTALLED)
	$(BIN)/python -m pytest -m stress
	$(BIN)/python -m tests.chaos.run --rounds=80

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With huge pages, as the programs of launch have them.
bench: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
bench: $(INSTALLED)
	$(BIN)/python -m experiments.benchmarks.encoders
	$(BIN)/python -m experiments.benchmarks.run

# Offline, with warnings as errors, in two processes: two tutorials are executed at a time. Executed
# tutorials are kept until one of their cells changes.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx --jobs=2 --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "the documentation is in docs/_build/html/index.html"

clean:
	rm -rf .venv .venv-* runs/demo runs/docs docs/_build
