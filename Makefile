PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := .venv-docs

.PHONY: demo test test-reliability lint types docs clean

demo: $(STAMP) ## train a latent diffusion model on real digits, probe it, write the report
	$(BIN)/python scripts/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not reliability"

test-reliability: $(STAMP) ## the long proofs of docs/RELIABILITY.md
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m reliability -rP

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP)
	$(BIN)/mypy

docs: $(DOCS)/.installed ## the site, in build/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo build/site/index.html

clean: ## removes what the targets above made, but never runs/
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache $(VENV) $(DOCS)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(DOCS)/.installed: pyproject.toml # what the site is built with, and nothing of ldmprobe: sources are read, not imported
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		| $(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	touch $@
