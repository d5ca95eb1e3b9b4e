# make demo | test | test-full | bench | lint | gpu | docs | clean
#
# Everything but `gpu` makes and uses .venv, with the torch of requirements/ci.txt (another: TORCH="torch==2.13.0").

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
PIP_ARGS ?=
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Tests compare numbers and threads fight over few cores: two are enough, and the same everywhere.
TEST_ENV = PYTHONPATH= STURDY_SIMT_DIR=$(CURDIR)/build/simt

.PHONY: demo test test-full bench lint gpu docs build simt clean

demo: build
	$(BIN)/sturdy demo

test: build simt
	$(TEST_ENV) HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest tests

test-full: build simt
	$(TEST_ENV) HYPOTHESIS_PROFILE=full STURDY_TEST_FULL=1 $(BIN)/python -m pytest tests

bench: build
	$(BIN)/python benchmarks/run.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.hpp' 'tests/*.cpp' 'tests/*.cu' 'tests/*.h' \
	  'examples/*.cpp' 'examples/*.c' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

# For a machine with an NVIDIA GPU and a torch of its own: makes no environment and installs nothing.
gpu:
	$(PYTHON) benchmarks/gpu.py

docs: $(STAMP)
	$(BIN)/pip install -q $(PIP_ARGS) mkdocs-material
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(STAMP)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .

simt: $(STAMP)
	$(BIN)/cmake -S . -B build/simt -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DSTURDY_SIMT=ON \
	  -DSTURDY_WITH_CUDA=OFF -DSTURDY_WITH_NUMPY=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_BUILD_TYPE=Release \
	  > build-simt.log 2>&1 || (cat build-simt.log; exit 1)
	@rm -f build-simt.log
	$(BIN)/cmake --build build/simt --target sturdy_test_libraries

$(STAMP): requirements/ci.txt requirements/tools.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_ARGS) $(if $(TORCH),$(TORCH) -r requirements/tools.txt,-r requirements/ci.txt)
	touch $(STAMP)

clean:
	rm -rf build dist site python/sturdy/lib python/sturdy/include python/sturdy/share python/sturdy/*.so
