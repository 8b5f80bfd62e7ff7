# `make help` lists the targets. Everything happens in .venv; nothing outside it is installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

export FLWR_TELEMETRY_ENABLED = 0
export HF_HUB_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.PHONY: help install model demo test lint check format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(READY) ## Make the virtual environment and install fedsdr with its tested versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "fedsdr needs Python 3.11 or newer; try: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

model: $(READY) ## Fetch the default model (93 MB, once) and convert it
	@$(BIN)/fedsdr fetch

demo: model ## Run FedSDR on the built-in data with the default model, and show the result
	$(BIN)/fedsdr run recipes/demo.toml run.dir=$(DEMO)

test: $(READY) ## Run the tests
	$(BIN)/pytest

lint: $(READY) ## Check format, lint, types and import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## All of lint and test: what CI does

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment (runs and the model cache are kept)
	rm -rf $(VENV)
