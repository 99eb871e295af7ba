PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-reliability lint types clean

demo: $(STAMP) ## train a latent diffusion model on real digits, probe it, write the report
	$(BIN)/python scripts/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not reliability"

test-reliability: $(STAMP) ## the long proofs of docs/RELIABILITY.md
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m reliability -rP

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

clean: ## removes what the targets above made, but never runs/
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache $(VENV)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)
