# make demo    install what the demo needs into .venv, train on real digits, write runs/latest/report.html
# make test    install what the tests need into .venv, run the default suite
# make examples  run every example that needs no tables, and compare how it ends with the numbers stored beside it
# make test-all  the slow tests and the tests on optional real data as well
# make check   format, lint, types, import contracts, docs in step with the command line
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export OPENBLAS_NUM_THREADS := 1
export OMP_NUM_THREADS := 1

.PHONY: demo test examples test-all check wheel clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-demo: pyproject.toml | $(BIN)/python
	$(PIP) --no-compile -e '.[demo]'
	@touch $@

$(VENV)/.stamp-test: pyproject.toml Makefile | $(BIN)/python
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.stamp-demo

demo: $(VENV)/.stamp-demo
	$(BIN)/fieldfare run examples/demo.py

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -m 'not slow and not data' -n 2

examples: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -m 'slow and not data' -n 2 tests/test_examples.py

test-all: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.stamp-test
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

wheel: $(VENV)/.stamp-test
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
