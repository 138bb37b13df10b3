# Everything sets itself up: a fresh Debian machine needs only git, make,
# python3.11 and python3.11-venv. A second run re-uses the environment.

PYTHON ?= python3.11
VENV ?= .venv
OUTPUT ?= demo_output
SEED ?= 0
# The versions that the suite has passed on; empty for the newest that fit.
LOCK ?= requirements.lock
# Test files run in as many processes; a machine of two cores gains by two.
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet $(if $(LOCK),--constraint $(LOCK))
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile

.PHONY: demo test test-all test-latest lint lock install clean

install: $(VENV)/installed-test

# Two stamps, so that `make demo` does not wait for the test tools.
$(VENV)/installed: setup.py $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) --editable '.[train]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --editable '.[test,plan]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/specialize demo --output_dir=$(OUTPUT) --seed=$(SEED)

test: $(VENV)/installed-test
	$(PYTEST)

test-all: $(VENV)/installed-test
	$(PYTEST) -m "not third_party"

# The newest releases that setup.py admits, in an environment of their own.
test-latest:
	$(MAKE) test VENV=.venv-latest LOCK=

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Writes down the versions that are installed, after the suite has passed.
lock: $(VENV)/installed-test
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > $(LOCK)

clean:
	rm -rf $(VENV) .venv-latest build dist *.egg-info demo_output
