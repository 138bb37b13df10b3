# Everything sets itself up: a fresh Debian machine needs only git, make,
# python3.11 and python3.11-venv. A second run re-uses the environment.

# Without the lock the newest Python, since the newest JAX requires it. Only those
# that run: a version manager puts names on the PATH that do not.
PYTHONS = $(foreach name,python3.11 python3.12 python3.13,\
  $(shell $(name) -c 'print("$(name)")' 2>/dev/null))
PYTHON ?= $(or $(if $(LOCK),$(firstword $(PYTHONS)),$(lastword $(PYTHONS))),\
  $(error There is no python3.11, python3.12 or python3.13: install one, or \
  pass PYTHON=PATH))
VENV ?= .venv
OUTPUT ?= demo_output
SEED ?= 0
# The versions that the suite has passed on; empty for the newest that fit.
LOCK ?= requirements.lock
# Test files run in as many processes. Two cores gain by a third one, which computes
# while the others wait for processes and disks.
WORKERS ?= 3
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet $(if $(LOCK),--constraint $(LOCK))
# Files go to them in the order of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile \
  --no-loadscope-reorder

# T5X is on no package index, and asks for git heads of its dependencies: it is
# installed without them, from wheels where they lie, else from its sources.
T5X_WHEELS := $(wildcard ../shared/t5x/*.whl)
T5X_SOURCES := git+https://github.com/google-research/t5x \
  git+https://github.com/google/airio \
  git+https://github.com/google-research/jestimator

.PHONY: demo example test test-all test-faults test-latest test-oldest test-t5x lint lock install clean

install: $(VENV)/installed-test

# Two stamps, so that `make demo` does not wait for the test tools.
$(VENV)/installed: setup.py $(LOCK)
	$(if $(wildcard $(BIN)/pip),,$(PYTHON) -m venv $(VENV))
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) --editable '.[train]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --editable '.[test,plan]'
	touch $@

$(VENV)/installed-t5x: $(VENV)/installed-test
	$(INSTALL) --editable '.[t5x]'
	$(BIN)/python -m pip install --quiet --no-deps \
	  $(or $(T5X_WHEELS),$(T5X_SOURCES))
	touch $@

demo: $(VENV)/installed
	$(BIN)/specialize demo --output_dir=$(OUTPUT) --seed=$(SEED)

# A domain of one's own: docs/own_domain.md.
example: $(VENV)/installed
	SPECIALIZE=$(abspath $(BIN)/specialize) PYTHON=$(abspath $(BIN)/python) \
	  examples/own_domain/run.sh example_output

test: $(VENV)/installed-test
	$(PYTEST)

test-all: $(VENV)/installed-test
	$(PYTEST) -m "not third_party and not faults"

# Twenty minutes of two cores, as root: it mounts disks. Writes
# docs/reliability.md; FAULTS='-k score' for a part.
test-faults: $(VENV)/installed-test
	$(BIN)/python -m pytest -m faults -q tests/faults $(FAULTS)
	cd tests && ../$(BIN)/python -m faults.reliability

# The newest releases that setup.py admits, in an environment of their own.
test-latest:
	$(MAKE) test VENV=.venv-latest LOCK=

# The oldest ones, likewise: uv alone knows how to choose them.
test-oldest: .venv-oldest/oldest.txt
	$(MAKE) test VENV=.venv-oldest LOCK=$<

.venv-oldest/oldest.txt: setup.py
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip compile --quiet --resolution=lowest-direct \
	  --extra=test --extra=plan --output-file=$@ setup.py

# Without wheels and without a network its tests are skipped, and say so.
test-t5x: $(VENV)/installed-test
	$(MAKE) $(VENV)/installed-t5x || test -z "$(T5X_WHEELS)"
	$(PYTEST) -m t5x tests/t5x_bridge

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Writes down the versions that are installed, after the suite has passed.
lock: $(VENV)/installed-test
	$(BIN)/python -m pip freeze --exclude-editable > $(or $(LOCK),$(error LOCK is empty)).new
	sed 's/+cpu$$//' $(LOCK).new > $(LOCK).clean
	mv $(LOCK).clean $(LOCK)
	rm $(LOCK).new

clean:
	rm -rf $(VENV) .venv-latest .venv-oldest build dist *.egg-info demo_output example_output
