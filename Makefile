# Each target makes .venv if there is none and installs what it needs; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
OUT ?= out/gpu-check
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt setup.py pyproject.toml constraints.txt

.PHONY: demo test lint sanitize triton-floor gpu-check package bench docs clean

demo: .venv/.demo
	$(BIN)/kdistill demo --out out/demo

test: .venv/.test
	$(BIN)/python -m pytest

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The CPU kernels and the emulated CUDA kernels under AddressSanitizer and UndefinedBehaviourSanitizer.
sanitize: .venv/.test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.sanitize

# Every Triton kernel with the oldest Triton that is allowed, compiled for sm_90: downloads that Triton, needs no GPU.
triton-floor: .venv/.test
	$(BIN)/python -m tests.triton_floor

# sdist and wheel, installed non-editable and used.
package: .venv/.test
	$(BIN)/python -m tests.package

# Everything that wants a GPU, in at most 18 minutes; no pip and no network.  PYTHON is one that has
# torch (docs/guide/gpu_check.md).
gpu-check:
	$(PYTHON) -m tests.gpu_check --out $(OUT)

# The documentation as a site in out/docs; a warning fails it, and nothing is fetched.
docs: .venv/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs out/docs

bench: .venv/.test
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf build dist .venv *.egg-info kdistill/*.so out

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python $(SOURCES)
	$(PIP) -e '.[demo]'
	touch $@

.venv/.test: .venv/bin/python $(SOURCES)
	KDISTILL_EMULATION=on $(PIP) -e '.[demo,report,test]'
	touch $@

.venv/.docs: .venv/bin/python $(SOURCES)
	$(PIP) -e '.[docs]'
	touch $@
