# make demo    two silos train one detector through a real scheduler, servers and Redis
# make test    the gate's tests; make test-slow those that take longer; make check ruff
# make bench   how fast training, detection and data path are, into docs/performance.md (minutes)
# make bench-sync   what a synchronisation costs, beside the engine's own client (minutes, 12 GB)
# make install only the installation into .venv

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow bench bench-sync check install clean

demo: $(STAMP)
	$(PYTHON) tools/run_demo.py

test: $(STAMP)
	$(PYTHON) -m pytest -m "not slow" tests

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m slow tests

bench: $(STAMP)
	$(PYTHON) tools/benchmark.py all --write=docs/performance.md

bench-sync: $(STAMP)
	$(PYTHON) tools/benchmark.py sync

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

install: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt tools/install.sh
	bash tools/install.sh $(VENV)
	touch $@

clean:
	rm -rf $(VENV)
