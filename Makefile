# Every target sets up what it needs in $(VENV), with nothing but Python 3.11+ and make. A stamp file
# per extra makes the second run quick; a change of pyproject.toml installs again.

VENV ?= .venv
# The interpreter for a new environment: PYTHON=… and no other if given, else the first 3.11+ that runs.
PYTHON ?=
CANDIDATES = $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)
PY = $(VENV)/bin/python
# An environment that is there keeps its own.
ifneq ($(and $(PYTHON),$(wildcard $(PY))),)
VERSION_OF = $(shell $(1) -c 'import sys; print(*sys.version_info[:3], sep=".")' 2>/dev/null)
ifneq ($(call VERSION_OF,$(PYTHON)),$(call VERSION_OF,$(PY)))
$(warning $(VENV) is of Python $(call VERSION_OF,$(PY)) and not of PYTHON=$(PYTHON): remove it, or pass VENV=another)
endif
endif
# Tests are made for the CPU, so that they give the same on every machine.
WORKERS ?= logical
PYTEST = $(PY) -m pytest -n $(WORKERS) --maxprocesses 8 -q
# Most of a test run is compilation, and most programs are those of the last run. JAX keeps them here,
# keyed by all that they are made from; `XLA_CACHE=` compiles each anew. Past XLA_CACHE_MB its
# programs are removed before a run, since JAX itself bounds it only with the package filelock.
XLA_CACHE ?= $(abspath build/xla-cache)
XLA_CACHE_MB = 1000
BOUNDED = if [ -d "$(XLA_CACHE)" ] && [ "$$(du -sm "$(XLA_CACHE)" | cut -f1)" -gt $(XLA_CACHE_MB) ]; \
    then find "$(XLA_CACHE)" -maxdepth 1 \( -name '*-cache' -o -name '*-atime' \) -delete; fi
CACHED = JAX_COMPILATION_CACHE_DIR="$(XLA_CACHE)" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
RESULTS ?= results

.PHONY: help test test-slow test-all nightly faults typed demo docs conformance lint format types notebooks pictures tables wheel dist bench clean
.DELETE_ON_ERROR:
# Stamps that only patterns name would be taken for intermediate files, and removed.
.PRECIOUS: $(VENV)/.installed-%
.NOTPARALLEL:

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

test: $(VENV)/.installed-test  ## test every law, function, command and docstring example
	@$(BOUNDED)
	$(CACHED) $(PYTEST) --dist worksteal $(ARGS)

test-slow: $(VENV)/.installed-test  ## what `make test` leaves out
	@$(BOUNDED)
	$(CACHED) $(PYTEST) --dist loadfile --all -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: ARGS left none

test-all: test test-slow  ## everything: both of these

FUZZ ?= 10000

nightly: $(VENV)/.installed-test  ## everything, optimised, with four times the random examples; 10,000 compositions (FUZZ=...)
	@$(BOUNDED)
	$(CACHED) $(PYTEST) --dist loadfile --all --optimised $(ARGS)
	JAXTRELU_FUZZ=$(FUZZ) $(PY) -m pytest -q -n 0 --all tests/test_fuzz.py $(ARGS)

faults: $(VENV)/.installed-test  ## kill, interrupt and starve `jaxtrelu sae`: what is lost (a long time)
	JAX_PLATFORMS=cpu $(PY) tests/faults/run.py $(ARGS)

typed: $(VENV)/.installed-test  ## mypy and pyright on a program that uses the installed wheel
	$(PY) tests/typed/run.py $(ARGS)

demo: $(VENV)/.installed-cli  ## compare activations on real data, plot, train an autoencoder, report on it
	$(PY) -m jaxtrelu info
	$(PY) -m jaxtrelu compare --data digits --output $(RESULTS)/compare
	$(PY) -m jaxtrelu plot --output $(RESULTS)/plot.png
	$(PY) -m jaxtrelu sae --output $(RESULTS)/sae
	$(PY) -m jaxtrelu sae report $(RESULTS)/sae patches --output $(RESULTS)/report.html

conformance: $(VENV)/.installed-test $(VENV)/.installed-peers  ## run the tests against PyTorch, ONNX, Keras, Equinox and SAELens
	JAXTRELU_PEERS=$(abspath $(PY)) $(PYTEST) --dist worksteal --all tests/test_conformance.py \
	    tests/test_examples.py tests/test_interop_*.py tests/test_docs.py \
	    tests/test_sae_formats.py $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-dev  ## ruff: put right what can be
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/.installed-dev  ## mypy
	$(VENV)/bin/mypy

# Executed once, and again when they or the library change; the documentation shows these.
NOTEBOOKS = $(patsubst %,build/%,$(wildcard notebooks/*.ipynb))

notebooks: $(NOTEBOOKS)  ## execute the notebooks (results to build/notebooks)

build/notebooks/%.ipynb: notebooks/%.ipynb $(shell find jaxtrelu -name '*.py') | $(VENV)/.installed-notebooks
	JAX_PLATFORMS=cpu $(PY) -m nbconvert --to notebook --execute --output-dir $(@D) \
	    --ExecutePreprocessor.record_timing=False $<

docs: $(VENV)/.installed-docs $(VENV)/.installed-test $(NOTEBOOKS)  ## build the documentation into build/site and open every page
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --clean
	JAXTRELU_SITE=build/site $(PY) -m pytest -q tests/test_site.py
	@echo "build/site/index.html"

pictures: $(VENV)/.installed-docs  ## draw the pictures of README and site again
	$(PY) docs/_site/pictures.py

tables: $(VENV)/.installed-test  ## write the tables of figures into the pages again, from docs/figures
	$(PY) docs/_site/tables.py

wheel: $(VENV)/.installed-cli  ## build the wheel into dist/
	rm -rf dist
	$(PY) -m pip wheel -q --no-deps -w dist .

dist: $(VENV)/.installed-release  ## build wheel and sdist into dist/, as a release has them
	rm -rf dist
	$(PY) -m build --outdir dist .
	$(PY) -m twine check --strict dist/*

bench: $(VENV)/.installed-bench  ## time the operation against its peers
	$(PY) benchmarks/activation.py $(ARGS)

clean:  ## remove environments, caches and results
	rm -rf $(VENV) build dist results .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@for candidate in $(CANDIDATES); do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "$(VENV): $$($$candidate --version), from $$candidate"; \
	        $$candidate -m venv $(VENV) && exit 0; \
	        echo "$$candidate cannot make a virtual environment; on Debian or Ubuntu install python3-venv." >&2; \
	        rm -rf $(VENV); exit 1; \
	    fi; \
	done; \
	echo "No Python 3.11 or newer among: $(CANDIDATES). Install one, or say PYTHON=/path/to/python." >&2; exit 1

# The libraries of autoencoders ask for a stack of gigabytes for language models, which is not used:
# tests/golden/sae_peers.py says what stands in its place.
$(VENV)/.installed-peers: $(VENV)/.installed-conformance
	$(PY) -m pip install -q --disable-pip-version-check --no-deps \
	    sae-lens==6.54.12 dictionary-learning==0.1.0 sae-bench==0.6.0
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[$*]'
	@touch $@
