# make demo    two silos train one detector through a real scheduler, servers and Redis
# make test    the gate's tests; make test-slow those that take longer; make check ruff
# make install only the installation into .venv

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow check install clean

demo: $(STAMP)
	$(PYTHON) tools/run_demo.py

test: $(STAMP)
	$(PYTHON) -m pytest -m "not slow" tests

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m slow tests

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

install: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt tools/install.sh
	bash tools/install.sh $(VENV)
	touch $@

clean:
	rm -rf $(VENV)
