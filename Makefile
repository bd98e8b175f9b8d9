# `make help` lists the commands. PROFILE chooses the scale, GPUS what `make paper` is spread over, PYTHON the
# interpreter that .venv is made with.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

PROFILE ?= pocket
PYTHON ?= python3.11
GPUS ?= 1

# Under `make -j` too one command comes after the other: they share .venv, build/ and the cores, and the order of `test` and
# `bench` is meant.
.NOTPARALLEL:

ifeq ($(wildcard requirements.lock),)
  $(error run make in the folder of the repository, or with make -C <that folder>)
endif

# What runs: an active conda environment that has our pins, or else .venv. `make help` and `make clean` need neither.
VENV_PYTHON := .venv/bin/python
LOCK_HASH := $(shell { sha256sum requirements.lock || shasum -a 256 requirements.lock; } 2>/dev/null | cut -c1-16)
CONDA_CHECK := $(if $(CONDA_PREFIX),$(shell "$(CONDA_PREFIX)/bin/python" -m sae_lib environment check >/dev/null 2>&1 && echo fits))
ifeq ($(CONDA_CHECK),fits)
  ENV_PYTHON := $(CONDA_PREFIX)/bin/python
  READY := linked
else
  ENV_PYTHON := $(VENV_PYTHON)
  READY := .venv/installed-$(LOCK_HASH)
endif
RUN := "$(ENV_PYTHON)" -m

# Packages of the user's home or of another project must not shadow the pinned ones, nor another kernel ours.
unexport PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE := 1
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env linked paper smoke plan verify test lint typecheck unit nbval test-oracles same-results study field bench \
    bench-evaluation bench-gemma docs lab pocket-lm lock-check clean

help:  ## list the commands
	@echo "make <command> [PROFILE=$(PROFILE)] [PYTHON=$(PYTHON)] [GPUS=$(GPUS)]"; echo
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | while IFS= read -r line; do \
	    printf '  %-11s %s\n' "$${line%%:*}" "$${line##*## }"; done

env: $(READY)  ## install the locked packages into .venv (every other command does so when needed)

linked:
	@$(RUN) sae_lib environment link

.venv/installed-$(LOCK_HASH):
	@if [ -n "$(CONDA_PREFIX)" ]; then echo "The conda environment $(CONDA_PREFIX) does not have the versions of requirements.lock; .venv is used."; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	    echo "PYTHON=$(PYTHON) is not a Python of version 3.11, 3.12 or 3.13 that runs here. Either install Python 3.11"; \
	    echo "(apt install python3.11 python3.11-venv, brew install python@3.11, pyenv install 3.11), or name another"; \
	    echo "with make PYTHON=/path/to/python, or make a conda environment: conda env create -f environment.yml"; \
	    exit 1; } >&2
	@version='import sys; print(sys.version)'; \
	if [ "$$($(VENV_PYTHON) -c "$$version" 2>/dev/null)" = "$$("$(PYTHON)" -c "$$version")" ]; \
	then "$(PYTHON)" -m venv .venv; else "$(PYTHON)" -m venv --clear .venv; fi
	@rm -f .venv/installed-*
	@echo "Installing the versions of requirements.lock into .venv; the first time this downloads them, minutes."
	$(VENV_PYTHON) -m pip install --quiet --constraint requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(VENV_PYTHON) -m pip install --quiet --requirement requirements.lock
	$(VENV_PYTHON) -m pip check
	@$(VENV_PYTHON) -m sae_lib environment link
	@$(VENV_PYTHON) -m sae_lib environment check >&2
	@touch $@

paper: $(READY)  ## run the five notebooks at PROFILE: figures, tables, claims
	@[ "$(GPUS)" = 1 ] || TORCH_CPP_LOG_LEVEL=ERROR $(RUN) torch.distributed.run --standalone --nproc-per-node "$(GPUS)" \
	    --virtual-local-rank -m sae_lib rank --profile "$(PROFILE)"
	@$(RUN) sae_lib run --profile "$(PROFILE)"

study: $(READY)  ## go on with PROFILE's long study for HOURS=1; rows of finished SAEs are kept in figures/PROFILE
	@$(RUN) sae_lib study --profile "$(PROFILE)" --hours "$(or $(HOURS),1)"

field: $(READY)  ## the rest of the field beside the baselines, on pocket and where the truth is known, for HOURS=2
	@$(RUN) sae_lib study --profile field --hours "$(or $(HOURS),2)"

smoke: $(READY)  ## the whole pipeline on very little, in a few minutes
	@$(RUN) sae_lib run --profile smoke

plan: $(READY)  ## what `make paper` would do at PROFILE: time, disk and memory, before anything starts
	@$(RUN) sae_lib plan --profile "$(PROFILE)"

verify: $(READY)  ## print the claims table of PROFILE and compare its verdicts with the committed ones
	@$(RUN) sae_lib verify --profile "$(PROFILE)" $(if $(LONG),--long)

test: lint typecheck unit nbval  ## lint, format check, types, unit tests, then the committed notebooks

lint: $(READY)  ## ruff: lint and format check; import-linter: rooms import downwards only
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	"$(ENV_PYTHON)" -c "from importlinter.cli import lint_imports_command as lint; lint()"

typecheck: $(READY)  ## mypy
	$(RUN) mypy

unit: $(READY)  ## unit tests
	OMP_NUM_THREADS=1 $(RUN) pytest -q --durations=10

# The notebooks build on each other's results, so they are checked in order and from nothing; at smoke, whatever profile
# their committed outputs are of.
nbval: $(READY)  ## run the committed notebooks and compare their checked cells
	rm -rf build/nbval
	SAE_LIB_PROFILE=smoke SAE_LIB_OUTPUT="$(CURDIR)/build/nbval" $(RUN) pytest -q \
	    -p no:cacheprovider --durations=5 --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks/0[1-5]_*.ipynb

# The peers need other versions of what we pin, so they have an environment of their own.
ORACLES := .venv-oracles/installed-$(shell { sha256sum tests/oracles/requirements.lock || shasum -a 256 tests/oracles/requirements.lock; } 2>/dev/null | cut -c1-16)
ORACLE_RUN := HF_HUB_OFFLINE=1 .venv-oracles/bin/python -m

$(ORACLES):
	"$(PYTHON)" -m venv --clear .venv-oracles
	@echo "Installing SAEBench, SAELens and dictionary_learning into .venv-oracles; the first time this takes minutes."
	.venv-oracles/bin/python -m pip install --quiet --constraint tests/oracles/requirements.lock \
	    "$$(grep '^torch==' tests/oracles/requirements.lock)"
	.venv-oracles/bin/python -m pip install --quiet --no-deps --requirement tests/oracles/requirements.lock
	@touch $@

test-oracles: $(ORACLES)  ## agreement with SAEBench, SAELens and dictionary_learning, in an environment of their own
	OMP_NUM_THREADS=1 $(ORACLE_RUN) pytest -q tests/oracles tests/share/test_interop_libraries.py tests/test_benchmarks.py

same-results: $(READY)  ## run smoke here and at the commit BASE, and compare every table bit for bit
	@$(RUN) tests.same_results --base "$(or $(BASE),HEAD)"

bench-evaluation: $(ORACLES)  ## seconds per SAE of our evaluation beside SAEBench's, on the same model and SAEs
	$(ORACLE_RUN) benchmarks.evaluation

bench: $(ORACLES) $(READY)  ## all benchmarks, the peers beside us; into benchmarks/
	$(ORACLE_RUN) benchmarks.step_time
	$(ORACLE_RUN) benchmarks.harvest
	$(ORACLE_RUN) benchmarks.evaluation
	$(ORACLE_RUN) benchmarks.scaling
	$(ORACLE_RUN) benchmarks.memory
	$(RUN) benchmarks.gemma --scaled
	$(ORACLE_RUN) benchmarks.summary

bench-gemma: $(READY)  ## the gemma-2-2b profile at full size on random weights, end to end (a GPU, 60 GB of disk)
	$(RUN) benchmarks.gemma
	$(RUN) benchmarks.summary

# The public names are there only once they are asked for, as the star does.
docs: $(READY)  ## the reference of sae_lib as offline pages, into build/docs
	PYTHONWARNINGS=ignore "$(ENV_PYTHON)" -c \
	    "from sae_lib import *; from pdoc.__main__ import cli; cli()" --output-directory build/docs sae_lib
	@echo "build/docs/index.html"

lab: $(READY)  ## JupyterLab on the notebooks
	$(RUN) jupyterlab --notebook-dir=notebooks

pocket-lm: $(READY)  ## train the packaged language model again (resumes where it stopped)
	$(RUN) sae_lib pocket-lm

lock-check: $(READY)  ## say how the environment differs from requirements.lock
	@$(RUN) sae_lib environment check

clean:  ## remove what PROFILE made under build (not .venv, not the committed figures)
	@if [ -x "$(ENV_PYTHON)" ]; then $(RUN) sae_lib clean --profile "$(PROFILE)"; \
	else echo "nothing to remove: no environment, so nothing was run"; fi
