# `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

CONFIG ?= configs/ml100k.yaml
ARGS ?=
# A Python with the packages already, for `make gpu-check` where they cannot be installed.
GPU_PYTHON ?=
LOCK ?= requirements/cpu.lock
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum < $(LOCK) | tr ' ' '-')

# torch's CPU build is not on PyPI. It may be among the indexes that pip is configured with; if not, it is on
# PyTorch's own.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The numeric libraries of every process stay on one thread; what may use more says so in the config.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup train quickstart demo test test-unit test-audit test-ray test-engine test-e2e test-gpu
.PHONY: check check-tests lint style types unused pages floors mutate lock lock-check gpu-check docs clean

help:  ## this list
	@sed -nE 's/^([a-z][a-z0-9 -]*):.*  ## (.*)$$/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r names text; do \
	  for name in $$names; do printf '%-12s %s\n' "$$name" "$${text//%/$${name#test-}}"; done; done

setup: $(STAMP)  ## build .venv from the lock; LOCK=requirements/gpu.lock for a GPU

# The stamp carries the lock's checksum, so a changed lock reinstalls, and it is the last thing written, so an install
# that broke off leaves none.
$(STAMP): $(LOCK) pyproject.toml
	@python=""; for candidate in python3.11 python3 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Sluice needs Python 3.11: none of python3.11, python3 and python is that version" >&2; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python has no venv module: install it, on Debian and Ubuntu with apt-get install python3.11-venv" >&2; exit 1; fi; \
	rm -f $(VENV)/.installed-*; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	  rm -rf $(VENV); "$$python" -m venv $(VENV); fi
	@echo "installing the packages of $(LOCK) into $(VENV) (about 2 minutes and 4 GB the first time)"
	@pins=$$(grep -v '^torch==' $(LOCK)); torch=$$(grep '^torch==' $(LOCK)); \
	$(PIP) install --quiet --no-deps --requirement <(echo "$$pins"); \
	$(PIP) install --quiet --no-deps "$$torch" 2>/dev/null \
	  || $(PIP) install --quiet --no-deps --extra-index-url $(TORCH_CPU_INDEX) "$$torch"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/sluice --help > /dev/null
	@touch $@

train: setup  ## run a config as a job: CONFIG=configs/ml100k.yaml, ARGS="--set learner.steps=50"
	$(BIN)/sluice submit --config $(CONFIG) $(ARGS)

quickstart:  ## the smallest run that goes through everything
	$(MAKE) train CONFIG=configs/quickstart.yaml

demo: setup  ## a simulated shop whose truth is known: who gains and who loses by a gate
	$(BIN)/sluice study configs/studies/demo.yaml

# What checks the locks and the GPU is tested without them.
CHECKS := tests/gpu/test_check.py tests/gpu/test_lock_check.py

test: setup  ## all tests but those for a GPU; ARGS goes to pytest
	$(BIN)/python -m pytest tests/unit tests/audit tests/ray tests/engine tests/e2e $(CHECKS) $(ARGS)

test-unit test-audit test-ray test-engine test-e2e test-gpu: test-%: setup  ## the tests of tests/%
	$(BIN)/python -m pytest tests/$* $(ARGS)

check: style types unused check-tests  ## lint, and the unit tests beside what changed since main: under a minute

check-tests: setup
	$(BIN)/python -m pytest -q $$($(BIN)/python -m tests.changed) $(ARGS)

lint: style types unused pages  ## style, types, unused code, links and code of the documentation

style: setup  ## ruff: style, names, complexity, format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict, over the five packages
	$(BIN)/mypy

pages: setup  ## links, paths, commands and code blocks of the documentation, and the layers
	$(BIN)/python -m pytest -q tests/unit/docs/test_{pages,prose,citations}.py tests/unit/test_layering.py

unused: setup  ## code that nothing uses
	$(BIN)/vulture

floors: setup  ## a few speed ratios against generous floors
	$(BIN)/sluice bench floors $(ARGS)

mutate: setup  ## break the code on purpose and see a test fail; ARGS=gate for files named so
	$(BIN)/python -m tests.mutation $(ARGS)

docs: setup  ## write the settings into docs/configuration.md and the pages of studies
	$(BIN)/python docs/scripts/configuration.py
	$(BIN)/python docs/scripts/simulator.py

lock:  ## resolve requirements/*.in into locks again
	python3.11 requirements/lock.py

lock-check:  ## whether both locks resolve and would install; needs no GPU
	@python3.11 requirements/check.py

# Asks for a GPU before it installs gigabytes for one. GPU_PYTHON's packages may be others than the lock's.
gpu-check:  ## on a machine with a GPU: what a CPU cannot show, as one table, in under eight minutes
	@python3 -m tests.gpu.check.device
	@if [ -z "$(GPU_PYTHON)" ]; then \
	  $(MAKE) --no-print-directory setup VENV=.venv-gpu LOCK=requirements/gpu.lock; fi
	@"$(or $(GPU_PYTHON),.venv-gpu/bin/python)" -m tests.gpu.check $(if $(GPU_PYTHON),--any-versions) $(ARGS)

clean:  ## remove .venv and what tools left
	rm -rf $(VENV) .venv-gpu build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
