# make demo    two silos train one detector through a real scheduler, servers and Redis
# make test    the gate's tests; make test-slow the longer ones; make check ruff, types, layers
# make coverage   shows how much of src the gate's tests run
# make mutants   shows which small changes of core modules their tests notice; MODULES=rounds selects (hours)
# make bench   writes how fast training, detection and data path are into docs/performance.md (minutes)
# make bench-sync   measures a synchronisation, also with the engine's own client (minutes, 12 GB)
# make install only installs into .venv
# make wheelhouse   downloads the packages; make install WHEELHOUSE=wheelhouse installs from there
# make lock    writes requirements.lock again from requirements*.txt; UPGRADE=--upgrade takes newest versions

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WHEELHOUSE :=
UPGRADE :=
LOCK_TOOL := $(VENV)/lock_tool
MUTANTS_TOOL := $(VENV)/mutants_tool
MODULES :=

# Each process would compile every module that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow coverage mutants bench bench-sync check install wheelhouse lock clean

demo: $(STAMP)
	$(PYTHON) tools/run_demo.py

test: $(STAMP)
	$(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow" tests

test-slow: $(STAMP)
	$(PYTHON) -m pytest -n 2 --dist loadfile -m slow tests

# Processes that tests start are counted too: pytest-cov starts in each of them.
coverage: $(STAMP)
	$(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow" --cov=$(CURDIR)/src \
		--cov-report=term:skip-covered tests

mutants: $(STAMP)
	$(PYTHON) -m venv $(MUTANTS_TOOL)
	$(MUTANTS_TOOL)/bin/pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0
	bash tools/mutants.sh $(VENV) $(MUTANTS_TOOL) $(MODULES)

bench: $(STAMP)
	$(PYTHON) tools/benchmark.py all --write=docs/performance.md

bench-sync: $(STAMP)
	$(PYTHON) tools/benchmark.py sync

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

install: $(STAMP)

$(STAMP): requirements.lock tools/install.sh
	bash tools/install.sh $(VENV) $(WHEELHOUSE)
	touch $@

wheelhouse: $(STAMP)
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--require-hashes --dest $(or $(WHEELHOUSE),wheelhouse) -r requirements.lock

# 3.9.2: cryptography does not support earlier versions of Python.
lock: $(STAMP)
	$(PYTHON) -m venv $(LOCK_TOOL)
	$(LOCK_TOOL)/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(LOCK_TOOL)/bin/uv pip compile --quiet --no-config --generate-hashes --python-version 3.9.2 \
		--python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" $(UPGRADE) \
		--output-file requirements.lock requirements-dev.txt

clean:
	rm -rf $(VENV)
