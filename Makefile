# All set-up happens here, on a machine with Python 3.11 or newer and pip:
#   make demo    install into .venv and run the embedded demo
#   make test    install into .venv with the test extra; lint, types, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := pyproject.toml constraints.txt

.PHONY: demo test clean

demo: $(VENV)/.installed
	$(BIN)/forgetting demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

# A stamp is newer than what it was made from: installing happens once, and again when that changes.
$(VENV)/.installed: $(SETUP) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(SETUP) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

clean:
	rm -rf $(VENV) build dist
