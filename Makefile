# The commands that people type. They need Python 3.11 or newer, pip and make; all else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A folder of original archives for `make arena`; without it, tiny stand-ins.
MANUAL ?=
# Tests for `make test-wheel`; all tests if empty.
TESTS ?=
# The tests that tell most for their time: formulas, gradients, masks, settings, options, structure, language.
TELLING := tests/hrrformer/test_oracle.py tests/hrrformer/test_attention.py tests/lra_tasks/test_config.py \
	tests/lra_tasks/test_listops.py tests/lra_tasks/test_options.py tests/project/test_structure.py \
	tests/project/test_prose.py tests/project/test_readme.py
COMPARED := none hrr holographic softmax:implementation=chunked
ARENA := data/$(if $(MANUAL),real,stand-ins)
# pip prints nothing for minutes when its output is not a terminal: show that it is alive.
ALIVE = ( while sleep 5 >/dev/null 2>&1; kill -0 $$$$ 2>/dev/null; do echo "... still installing"; done ) & alive=$$!; trap "kill $$alive" EXIT;

.PHONY: help compare arena check test lint types readme docs notebooks dist check-wheel test-wheel clean

help:
	@echo "make compare   four mixers on two tasks, one that needs mixing and ListOps: a table and a page"
	@echo "make arena     all six tasks at smoke size; MANUAL=FOLDER takes real data instead of stand-ins"
	@echo "make check     lint, types, and the tests that tell most: two minutes"
	@echo "make test      all tests: 15 to 25 minutes on two cores"
	@echo "make lint      ruff;   make types: pyright"
	@echo "make readme    tables and pictures of the README and of docs, from experiments/results"
	@echo "make docs      the documentation, in site/"
	@echo "make notebooks executes the notebooks of colab/, and keeps what they show"
	@echo "make dist      sdist and wheel, in dist/"
	@echo "make check-wheel   the wheel without extras, in an environment of its own: imports and runs the layer"
	@echo "make test-wheel    the test suite against the wheel, in an environment of its own; TESTS=... for some tests"
	@echo "make clean     removes $(VENV), data, runs, dist and site"

compare: $(VENV)/lra
	@$(BIN)/python -m experiments.grid order,listops --preset quick --mixers $(COMPARED) --data-dir data

arena: $(VENV)/lra
	@test -n "$(MANUAL)" || $(BIN)/python tests/helpers/stand_ins.py $(ARENA)/sources
	@$(BIN)/lra prepare all --variant smoke --unofficial --manual-dir $(or $(MANUAL),$(ARENA)/sources) --data-dir $(ARENA)
	@for task in listops text retrieval image pathfinder pathx; do \
		$(BIN)/lra train $$task --preset smoke --data-dir $(ARENA) --run-dir runs/arena-$(notdir $(ARENA))/$$task || exit; \
	done

check: lint types
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q $(TELLING)

test: $(VENV)/dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(VENV)/dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/dev
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@PATH="$(BIN):$$PATH" pyright --ignoreexternal --verifytypes hrrformer

readme: $(VENV)/lra
	@$(BIN)/python -m experiments.readme
	@$(BIN)/python docs/pictures.py

docs: $(VENV)/docs
	@$(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html, or: $(BIN)/python -m mkdocs serve"

dist: $(VENV)/dev
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation

# Environments with the wheel and nothing else of ours, made again every time and kept.
check-wheel: dist
	@echo "installing the wheel into $(VENV)-plain"
	@$(BIN)/python -m venv --clear $(VENV)-plain
	@$(ALIVE) $(VENV)-plain/bin/python -m pip install --disable-pip-version-check -q dist/*.whl
	@$(VENV)-plain/bin/python tests/helpers/plain.py

test-wheel: dist
	@echo "installing the wheel with [lra,dev] into $(VENV)-wheel"
	@$(BIN)/python -m venv --clear $(VENV)-wheel
	@$(ALIVE) $(VENV)-wheel/bin/python -m pip install --disable-pip-version-check -q "$$(echo dist/*.whl)[lra,dev]"
	@$(VENV)-wheel/bin/python tests/helpers/installed.py dist/*.tar.gz -n 2 --dist worksteal -q $(TESTS)

notebooks: $(VENV)/dev
	@$(BIN)/python -m colab.execute

$(VENV)/python:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@$(ALIVE) $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/lra: $(VENV)/python pyproject.toml
	@echo "installing hrrformer[lra] into $(VENV)"
	@$(ALIVE) $(BIN)/python -m pip install --disable-pip-version-check -q -e '.[lra]'
	@touch $@

$(VENV)/dev: $(VENV)/lra
	@echo "installing hrrformer[lra,dev] into $(VENV)"
	@$(ALIVE) $(BIN)/python -m pip install --disable-pip-version-check -q -e '.[lra,dev]'
	@touch $@

$(VENV)/docs: $(VENV)/lra pyproject.toml
	@echo "installing hrrformer[lra,docs] into $(VENV)"
	@$(ALIVE) $(BIN)/python -m pip install --disable-pip-version-check -q -e '.[lra,docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-plain $(VENV)-wheel data runs dist site
