# Everything sets itself up: a fresh Debian machine needs only git, make,
# python3.11 and python3.11-venv. A second run re-uses the environment.

PYTHON ?= python3.11
VENV ?= .venv
OUTPUT ?= demo_output
SEED ?= 0
BIN := $(VENV)/bin

.PHONY: demo test test-all lint install clean

install: $(VENV)/installed-test

# Two stamps, so that `make demo` does not wait for the test tools.
$(VENV)/installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,plan]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/specialize demo --output_dir=$(OUTPUT) --seed=$(SEED)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

test-all: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not third_party"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output
