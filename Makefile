# The commands people type. Needs Python 3.11 or newer, pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A folder with real data for `make arena`, archives as their makers publish them; without it, tiny stand-ins.
MANUAL ?=
ARENA := data/$(if $(MANUAL),real,stand-ins)
# pip is silent for long stretches when its output is no terminal: show that it is alive.
ALIVE = ( while sleep 5 >/dev/null 2>&1; kill -0 $$$$ 2>/dev/null; do echo "... still at it"; done ) & alive=$$!; trap "kill $$alive" EXIT;

.PHONY: help compare arena test lint types readme notebooks clean

help:
	@echo "make compare   ListOps at 2,000 tokens: HRR attention, softmax attention, no mixing; a table and a picture"
	@echo "make arena     all six tasks at smoke size; MANUAL=FOLDER takes real data instead of stand-ins"
	@echo "make test      the whole test suite"
	@echo "make lint      ruff;   make types: pyright"
	@echo "make readme    the README's table, from experiments/results"
	@echo "make notebooks executes the notebooks of colab/, and keeps what they show"
	@echo "make clean     removes $(VENV), data and runs"

compare: $(VENV)/lra
	@$(BIN)/python -m experiments.listops_race quick --data-dir data

arena: $(VENV)/lra
	@test -n "$(MANUAL)" || $(BIN)/python tests/stand_ins.py $(ARENA)/sources
	@$(BIN)/lra prepare all --config smoke --unofficial --manual-dir $(or $(MANUAL),$(ARENA)/sources) --data-dir $(ARENA)
	@for task in listops text retrieval image pathfinder pathx; do \
		$(BIN)/lra train $$task --preset smoke --data-dir $(ARENA) --run-dir runs/arena-$(notdir $(ARENA))/$$task || exit; \
	done

test: $(VENV)/dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(VENV)/dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/dev
	@$(BIN)/pyright --pythonpath $(BIN)/python

readme: $(VENV)/lra
	@$(BIN)/python -m experiments.readme

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

clean:
	rm -rf $(VENV) data runs
