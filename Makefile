# All set-up happens here, on a machine with Python 3.11 or newer and pip:
#   make demo    install into .venv and run the embedded demo
#   make test    install into .venv with the test extra; lint, types, tests
#   make docs    the same, then build the documentation into site/
#   make reference   the same, then write the generated parts of the reference pages
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := pyproject.toml constraints.txt

.PHONY: demo test test-long docs reference clean

demo: $(VENV)/.installed
	$(BIN)/forgetting demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not long"

test-long: $(VENV)/.installed-test
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m long

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site
	@echo "Open site/index.html. The search needs a server: $(BIN)/mkdocs serve"

reference: $(VENV)/.installed-test
	$(BIN)/python docs/hooks/generated_pages.py

# A stamp is newer than what it was made from: installing happens once, and again when that changes.
$(VENV)/.installed: $(SETUP) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# Most of what is installed is never imported: compiling all of it would take half a minute.
$(VENV)/.installed-test: $(SETUP) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

clean:
	rm -rf $(VENV) build dist site
