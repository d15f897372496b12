# Everything runs in a virtual environment of its own, .venv, which is made when there is none.
#
#   VENV=DIR         another virtual environment
#   PYTHON=python3.12  the Python to make it with
#   INSTALLER=pip    use venv and pip also where uv is installed (INSTALLER=uv: the other way round)
#   TORCH=default    PyTorch's default build: on Linux it brings several GB of CUDA libraries, and machines without an
#                    NVIDIA GPU get the CPU build instead (TORCH=cpu; cu126, rocm6.4, ... are PyTorch's other builds)
#   PIP_CONSTRAINT, UV_CONSTRAINT and the installers' other variables work as usual.

VENV ?= .venv
export VENV TORCH
STAMP := $(VENV)/.madad-lite-installed
BIN := $(VENV)/bin
OUT ?= results/demo

# Two test processes at a time, one thread each: they would get in each other's way on two cores. Nothing is downloaded.
# Matplotlib's list of fonts is the environment's own: one that knows fonts of another makes it complain in notebooks.
TESTING := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1 HF_HUB_OFFLINE=1 \
	MPLCONFIGDIR=$(abspath $(VENV))/matplotlib
WORKERS := -n 2 --dist loadfile
# What kernels, browsers and tests leave behind would fill a disk within a few dozen runs: a folder that goes with the run.
OWN_TMP = t=$$(mktemp -d) && trap 'rm -rf "$$t"' EXIT && TMPDIR=$$t

.PHONY: help env demo test test-unit test-quick test-notebooks soak lab notebooks site lint restamp clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

env: $(STAMP)  ## make the virtual environment and install the package with all its extras

$(STAMP): pyproject.toml scripts/make_env.sh
	@bash scripts/make_env.sh
	@touch $@

demo: $(STAMP)  ## the main job end to end on simulated subjects; writes results/demo (OUT=DIR for another folder)
	$(BIN)/madad demo --out $(OUT)

test: $(STAMP)  ## unit tests, then every notebook is run and compared with its stored outputs
	$(MAKE) test-unit
	$(MAKE) test-notebooks

test-unit: $(STAMP)  ## only the unit tests
	$(OWN_TMP) MPLBACKEND=Agg $(TESTING) $(BIN)/python -m pytest tests $(WORKERS)

test-quick: $(STAMP)  ## the unit tests without those marked slow
	$(OWN_TMP) MPLBACKEND=Agg $(TESTING) $(BIN)/python -m pytest tests -m "not slow" $(WORKERS)

test-notebooks: $(STAMP)  ## only the notebooks
	$(OWN_TMP) $(TESTING) $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks $(WORKERS)

soak: $(STAMP)  ## many calls in one process, and kill -9 at random moments: half an hour (SOAK="--calls 24 --kills 4": fewer)
	$(TESTING) $(BIN)/python -W ignore scripts/soak.py $(SOAK)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

notebooks: $(STAMP)  ## run notebooks/*.py again and store them as .ipynb with their outputs (ONLY=03 for one)
	$(BIN)/python scripts/run_notebooks.py $(ONLY)

site: $(STAMP)  ## the site with the playground, in build/site (OPEN=1: then serve it and open the browser)
	$(TESTING) $(BIN)/python -W ignore scripts/make_site.py build/site $(if $(OPEN),--open)

lint: $(STAMP)  ## ruff, and shellcheck where it is installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	if command -v shellcheck > /dev/null; then shellcheck data_download.sh scripts/*.sh .ci/run; fi

restamp: $(STAMP)  ## write the repository's address from pyproject.toml into badges, set-up cells and links (URL=... to change it)
	$(BIN)/python scripts/restamp.py $(URL)

clean:  ## remove caches, builds and the demo's results; .venv, data and runs stay
	rm -rf build dist *.egg-info .hypothesis .pytest_cache .ruff_cache results/demo
	find madad_lite tests notebooks scripts benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
