# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
# Processes of the tests.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)

.DEFAULT_GOAL := help
.PHONY: help .venv demo demo-long test coverage lint bench gpu docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[-.a-z]+:.*## / { printf "make %-9s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv: $(READY) ## install everything; PYTHON=... picks the interpreter

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "apdm needs Python 3.11 or newer, and $(PYTHON) is not: name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	# Python compiles a module when it is first imported: most of these are never imported.
	# torch alone and first: the other packages ask for a range, which might draw another build of it.
	$(BIN)/python -m pip install --quiet --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY) ## harden the bundled model against a drawn person and attack it: outputs/demo/
	$(BIN)/apdm demo

demo-long: $(READY) ## apdm demo --size full with twice the hardening, which takes some twelve minutes
	$(BIN)/apdm demo --size long

# A process per core, each with one thread: the models are tiny. Offline: no test may download. xdist would keep files
# with few tests for the end, and these are the longest: at the end one process would work alone.
test: $(READY) ## run the tests; ARGS=... goes to pytest
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 8 \
		--dist loadfile --no-loadscope-reorder $(ARGS)

# Measuring takes an eighth more time or more. Processes that tests start are not counted.
coverage: $(READY) ## run the tests and print the share of lines of apdm that they run
	$(MAKE) test ARGS="--cov=apdm --cov-report=term:skip-covered $(ARGS)"

lint: $(READY) ## ruff, its formatter, mypy, the order of the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

gpu: $(READY) ## measure everything on this machine's GPU, in less than 8 minutes; ARGS=... goes to the command
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench: $(READY) ## time the parts that matter
	$(BIN)/python -m benchmarks

docs: $(READY) ## build the documents as a site in build/site; a broken link is an error
	$(BIN)/python -m apdm.config.reference docs/reference/options.md docs/reference/diffusers-options.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean: ## remove the demo's outputs and all caches; .venv stays
	rm -rf outputs/demo outputs/demo-subjects build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find apdm tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
