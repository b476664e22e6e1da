# make setup | train | quickstart | test | floors | lint | mutate | docs | lock | lock-check | gpu-check      (README.md says what each is for)

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

# torch's CPU build is not on PyPI. It may be among the indexes that pip is configured with; if not, it is on PyTorch's own.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The numeric libraries of every process stay on one thread; what may use more says so in the config.
export OMP_NUM_THREADS ?= 1

.PHONY: setup train quickstart test test-unit test-ray test-engine test-e2e test-gpu floors lint mutate lock lock-check gpu-check docs clean

setup: $(STAMP)

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

train: setup
	$(BIN)/sluice submit --config $(CONFIG) $(ARGS)

quickstart:
	$(MAKE) train CONFIG=configs/quickstart.yaml

# What checks the locks and the GPU is tested without them.
CHECKS := tests/gpu/test_check.py tests/gpu/test_lock_check.py

test: setup
	$(BIN)/python -m pytest tests/unit tests/ray tests/engine tests/e2e $(CHECKS) $(ARGS)

test-unit test-ray test-engine test-e2e test-gpu: test-%: setup
	$(BIN)/python -m pytest tests/$* $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

floors: setup
	$(BIN)/sluice bench floors $(ARGS)

mutate: setup
	$(BIN)/python -m tests.mutation $(ARGS)

docs: setup
	$(BIN)/python docs/scripts/configuration.py

lock:
	python3.11 requirements/lock.py

lock-check:
	@python3.11 requirements/check.py

# Asks for a GPU before it installs gigabytes for one. GPU_PYTHON's packages may be others than the lock's.
gpu-check:
	@python3 -m tests.gpu.check.device
	@if [ -z "$(GPU_PYTHON)" ]; then \
	  $(MAKE) --no-print-directory setup VENV=.venv-gpu LOCK=requirements/gpu.lock; fi
	@"$(or $(GPU_PYTHON),.venv-gpu/bin/python)" -m tests.gpu.check $(if $(GPU_PYTHON),--any-versions) $(ARGS)

clean:
	rm -rf $(VENV) .venv-gpu build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
