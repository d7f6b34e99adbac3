# Start with `make demo` or `make test`; the first one that runs sets up .venv.

VENV := .venv
# The versions to install: locked, lowest or newest (tools/install.py).
VERSIONS := locked
PYTHON_BIN := $(VENV)/bin/python
READY := $(VENV)/.ready
COMPILE = $(VENV)/bin/uv pip compile pyproject.toml --extra dev --upgrade --only-binary :all: --generate-hashes \
	--python-version 3.10 --no-annotate --quiet --custom-compile-command 'make locks'
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# An empty value lets Python write byte code also where the environment forbids it: the many processes of the tests would
# compile the package again, each for a second.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test suite test-avx2 nightly lowest newest gpu lint types format wheel reference docs locks clean

help:  ## print this list
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## train on drawn shapes for a few minutes, evaluate and draw the detections
	$(PYTHON_BIN) tools/demo.py

# The tests run whatever lint and types say, and the last line names everything that failed.
test: $(READY)  ## run everything that a change must pass: lint, types and the default test suite
	@failed=; \
	for check in lint types suite; do $(MAKE) --no-print-directory $$check || failed="$$failed $$check"; done; \
	test -z "$$failed" || { echo "make: failed:$$failed" >&2; exit 1; }

suite: $(READY)  ## run the default test suite only
	$(PYTHON_BIN) -m pytest -q -n auto --maxprocesses 4 --max-worker-restart 1 --dist loadfile \
		--no-loadscope-reorder -m "not nightly and not gpu"

test-avx2: $(READY)  ## run the default test suite limited to AVX2, as on processors without AVX-512
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(MAKE) --no-print-directory suite

nightly: $(READY)  ## run the long fuzz and soak tests, and the suite with the lowest and the newest versions
	@failed=; $(PYTHON_BIN) -m pytest -q -o faulthandler_timeout=7200 -m nightly || failed=' nightly'; \
	for check in lowest newest; do $(MAKE) --no-print-directory $$check || failed="$$failed $$check"; done; \
	test -z "$$failed" || { echo "make: failed:$$failed" >&2; exit 1; }

lowest:  ## run the suite with the lowest versions that pyproject.toml allows, with Python 3.10 in .venv-lowest
	$(MAKE) --no-print-directory VENV=.venv-lowest VERSIONS=lowest PYTHON=python3.10 suite

newest:  ## run the suite with the newest versions that pyproject.toml allows, in .venv-newest
	rm -f .venv-newest/.ready
	$(MAKE) --no-print-directory VENV=.venv-newest VERSIONS=newest suite

gpu: $(READY)  ## run the tests that need a CUDA device
	$(PYTHON_BIN) -m pytest -q -m gpu

lint: $(READY)  ## check rules and format with ruff
	$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m ruff format --check .

# The last NumPy for Python 3.10 has other type stubs than the code is written for.
types: $(READY)  ## check types with mypy, strictly apart from the tests
	@if $(PYTHON_BIN) -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then \
		echo 'types: not checked with Python 3.10, only with 3.11 and newer'; \
	else \
		$(PYTHON_BIN) -m mypy; \
	fi

format: $(READY)  ## rewrite the source in the project's format
	$(PYTHON_BIN) -m ruff check --fix .
	$(PYTHON_BIN) -m ruff format .

reference: $(READY)  ## write docs/reference/ and the table of keys again, after a key has changed
	PYTHONPATH=. $(PYTHON_BIN) tools/reference.py

docs: .venv-docs/.ready  ## build the documentation into site/; fails on a warning, such as a broken link
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet
	@echo 'The start page is site/index.html'

wheel: $(READY)  ## build the wheel and the source archive into dist/
	$(PYTHON_BIN) -m build

# One file for every supported Python, and the lowest versions for the lowest Python. uv reads UV_DEFAULT_INDEX, not the
# configuration of pip. The last line proves that each Python finds a wheel of every package.
locks: $(READY)  ## renew the exact versions in requirements/
	$(COMPILE) --universal --constraint requirements/constraints.txt --output-file requirements/locked.txt
	$(COMPILE) --resolution lowest-direct --python-platform x86_64-manylinux_2_28 --output-file requirements/lowest.txt
	@for version in 3.10 3.11 3.12 3.13 3.14; do \
		$(VENV)/bin/uv pip install --dry-run --quiet --target .venv/dry-run --python $(PYTHON_BIN) \
			--python-version $$version --python-platform x86_64-manylinux_2_28 --only-binary :all: --require-hashes \
			--requirement requirements/locked.txt || exit 1; \
	done

clean:  ## remove build results and caches; keep .venv, runs, data and weights
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find detector tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that make repeats an interrupted installation; pip skips installed packages.
$(READY): pyproject.toml requirements/locked.txt requirements/lowest.txt tools/install.py
	@$(PYTHON_BIN) -m pip --version >/dev/null 2>&1 || { \
		for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
			"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && break; \
			python=; \
		done; \
		if [ -z "$$python" ]; then \
			echo 'make: expected Python 3.10 or newer, got none: install it,' \
				'or give its path: make PYTHON=/path/to/python3 test' >&2; \
			exit 1; \
		fi; \
		echo "Setting up $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV) || { \
			echo 'make: $(VENV) could not be created: on Debian and Ubuntu, install python3-venv' \
				'(apt install python3-venv), then run make again' >&2; \
			exit 1; \
		}; \
	}
	@echo 'Installing the package and its tools into $(VENV) (the first time takes minutes)'
	@$(PYTHON_BIN) tools/install.py $(VERSIONS)
	@touch $(READY)

# MkDocs reads the code without importing torch, so this environment holds only the extra `docs`, in a minute.
.venv-docs/.ready: pyproject.toml tools/install.py
	@$(or $(PYTHON),python3) -m venv --clear .venv-docs
	@.venv-docs/bin/python tools/install.py docs
	@touch $@
