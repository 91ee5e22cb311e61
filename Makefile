# `make train` and `make test` do all the set-up by themselves; nothing is repeated the second time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help train test test-gpu docs setup clean

help:
	@echo "make train      set up, then train the default learner (letters of the world's scripts)"
	@echo "make test       set up, then lint, type-check, check the import layers, run the tests"
	@echo "make test-gpu   set up, then run the contracts on the accelerator that is here, if there is one"
	@echo "make docs       set up, then build the pages into build/docs; a warning is an error"
	@echo "make clean      remove the environment and the caches of the tools"

train: $(VENV)/.installed
	$(BIN)/python scripts/train.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-gpu: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.on_accelerator $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -j auto docs build/docs

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build/docs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
