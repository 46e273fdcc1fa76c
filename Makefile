# make run and make test do everything on a fresh clone: nothing has to be installed by hand before.
SHELL := /bin/bash
.DEFAULT_GOAL := run
PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0
export DO_NOT_TRACK := 1
FIND_LINKS := --find-links .stubs $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))

.PHONY: setup run test check bench

setup: .venv/installed  ## the tested versions, the CPU engine included

.venv/installed: requirements.lock pyproject.toml infra/engine/stub_wheels.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	$(PYTHON) infra/engine/stub_wheels.py .stubs
	$(if $(PIP_CERT),SSL_CERT_FILE=$(PIP_CERT)) VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet $(FIND_LINKS) -r requirements.lock
	$(if $(PIP_CERT),SSL_CERT_FILE=$(PIP_CERT)) VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q -j 0 .venv/lib/python3*/site-packages/{vllm,torch,transformers} >/dev/null || true
	touch $@

run: setup  ## the main job on the embedded default: real vLLM on CPU, local Ray, local store
	$(BIN)/python -m flows.collect_and_train --matrix examples/local.yaml --limits examples/gate-local.yaml --store runs

test: setup  ## every test, the real engine included
	$(BIN)/python -m pytest

check: setup  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## speed and accuracy
	$(BIN)/python -m benchmarks
