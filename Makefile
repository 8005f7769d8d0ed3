# make demo    set up and run the main job          make lint   what CI checks beside the tests
# make test    set up and run the quick tests       make docs   build the documentation into site/
# make test-slow   the other tests                  make soak   kills at random moments; rows in bench/results/soak
# make clean   remove what make made
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

.PHONY: setup demo test test-slow soak lint docs clean
setup: $(READY)

$(READY): $(SOURCES)
	@echo "== setting up $(VENV): torch as pinned in constraints.txt, kdx with its kernels, the tools of the tests"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdx needs Python 3.11 or newer, this is %d.%d; try make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	@echo "== distilling: a CNN teaches a small CNN with 500 labels (under two minutes on two cores); runs/fashion-offline"
	$(BIN)/kdx run fashion-offline --resume

test: $(READY)
	@echo "== running the quick tests; those that need a GPU skip without one, make test-slow runs the others"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(READY)
	@echo "== running the slow tests: statistics, whole documents, packages, kills, sweeps of kernels"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not soak"

soak: $(READY)
	@echo "== running the soaks, whose rows bench/results/soak keeps"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak --timeout 0

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info kdx_ext/*.so kdx_ext/build_info.json
