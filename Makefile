PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
OUT ?= gpu-results

VENV := .venv
PY := $(VENV)/bin/python
DEV := $(VENV)/.dev
EXAMPLES := $(VENV)/.examples
PYTEST := TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check docs bench gpu clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: $(EXAMPLES) ## what the losses do on this machine
	$(PY) -m fusedloss demo

# One thread per worker: on two cores the workers already use both.
test: $(DEV) ## the tests, kernels in Triton's interpreter on the CPU (WORKERS=2, PYTEST_ARGS=...)
	$(PYTEST) $(PYTEST_ARGS)

test-all: $(DEV) ## the tests on their full grids
	$(PYTEST) --full $(PYTEST_ARGS)

check: $(DEV) ## lint, formatting and types, and whether the site builds
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(MAKE) docs

docs: $(DEV) ## the site of docs/ in site/, any broken link an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# PASSIVE: beside other work a thread that spins while it waits makes a step 8 times as long.
bench: $(DEV) ## the short CPU benchmarks (BENCH_ARGS=...)
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest bench --benchmark-only --benchmark-columns=min,median,rounds $(BENCH_ARGS)

gpu: ## tests and benchmarks on this GPU, offline, with the torch, triton and pytest of PYTHON (OUT=gpu-results)
	$(PYTHON) -m pip install --no-index --no-deps --no-build-isolation -e .
	$(PYTHON) -m bench.gpu $(OUT)

clean: ## remove build outputs and caches, keep .venv
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# An extra and its stamp. torch comes first and alone, at its pin, so that no other requirement chooses its build.
$(DEV) $(EXAMPLES): $(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 needed: make PYTHON=python3.12")'
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints.txt $(TORCH)
	$(PY) -m pip install -c constraints.txt -e '.[$*]'
	touch $@
