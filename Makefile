# The commands people type. Needs Python 3.11 or newer, pip and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# pip is silent for long stretches when its output is no terminal: show that it is alive.
ALIVE = ( while sleep 5; do echo "... installing"; done ) & alive=$$!; trap "kill $$alive" EXIT;

.PHONY: help compare test lint types readme clean

help:
	@echo "make compare   ListOps at 2,000 tokens: HRR attention, softmax attention, no mixing; a table and a picture"
	@echo "make test      the whole test suite"
	@echo "make lint      ruff;   make types: pyright"
	@echo "make readme    the README's table, from experiments/results"
	@echo "make clean     removes .venv, data and runs"

compare: .venv/lra
	@$(BIN)/python -m experiments.listops_race quick --data-dir data

test: .venv/dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: .venv/dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/dev
	@$(BIN)/pyright --pythonpath $(BIN)/python

readme: .venv/lra
	@$(BIN)/python -m experiments.readme

.venv/python:
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/lra: .venv/python pyproject.toml
	@echo "installing hrrformer[lra] into .venv"
	@$(ALIVE) $(BIN)/python -m pip install --disable-pip-version-check -q -e '.[lra]'
	@touch $@

.venv/dev: .venv/lra
	@echo "installing hrrformer[lra,dev] into .venv"
	@$(ALIVE) $(BIN)/python -m pip install --disable-pip-version-check -q -e '.[lra,dev]'
	@touch $@

clean:
	rm -rf .venv data runs
