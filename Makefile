# Two commands do everything: `make train` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

CONFIG  ?= configs/digits.py
WORKDIR ?= runs/digits
FLAGS   ?=

.DEFAULT_GOAL := help
.PHONY: help train test test-all check docs package faults soak format hooks clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12
	@echo
	@echo "make train CONFIG=configs/cifar10.py:resnet20,cpu WORKDIR=runs/cifar10 FLAGS=--config.seed=1"

train: $(VENV)/.installed  ## train a ResNet on real images in about a minute, or go on with WORKDIR
	$(BIN)/python train.py --config=$(CONFIG) --workdir=$(WORKDIR) $(FLAGS)
	-@$(BIN)/python -m resnet_jax build --background

test: $(VENV)/.installed-dev  ## run the everyday tests, in about five minutes on two cores
	$(PYTEST) $(FLAGS)

test-all: $(VENV)/.installed-dev  ## run every test, the thorough ones included
	$(PYTEST) -m '' $(FLAGS)

check: $(VENV)/.installed-dev  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## build the site into build/site, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file=website/mkdocs.yml
	$(BIN)/python website/check_links.py build/site

package: $(VENV)/.installed-package  ## build the distributions, check them, train with them in a new environment
	rm -rf dist build/clean
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt dist/*.whl
	cp tests/installed.py build/clean
	cd build/clean && bin/python installed.py . && bin/resnet-jax --version

faults: $(VENV)/.installed-dev  ## break runs in every way known, and count what was survived
	$(BIN)/python benchmarks/faults.py $(FLAGS)

soak: $(VENV)/.installed-dev  ## kill runs 200 times at random, and lose nothing
	$(BIN)/python benchmarks/soak.py $(FLAGS)

format: $(VENV)/.installed-dev  ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: $(VENV)/.installed-dev  ## run the checks at each commit from now on
	$(BIN)/pre-commit install

clean:  ## remove the virtual environment and caches, but no runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; try make PYTHON=python3.12 …"; exit 64; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once, a minute or two)"
	$(PIP) install -c constraints.txt -e '.[cpu]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what tests and checks need"
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "installing what the site needs"
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.installed-package: $(VENV)/.installed
	@echo "installing what builds the package"
	$(PIP) install -c constraints.txt -e '.[package]'
	@touch $@
