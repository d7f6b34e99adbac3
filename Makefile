# Start with `make demo` or `make test`; the first one that runs sets up .venv.

PYTHON_BIN := .venv/bin/python
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test nightly gpu lint types format wheel reference clean

help:  ## print this list
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## train on drawn shapes for a few minutes, evaluate and draw the detections
	$(PYTHON_BIN) tools/demo.py

test: lint types  ## run everything that a change must pass: lint, types and the default test suite
	$(PYTHON_BIN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not nightly and not gpu"

nightly: $(READY)  ## run the long fuzz and soak tests
	$(PYTHON_BIN) -m pytest -q -m nightly

gpu: $(READY)  ## run the tests that need a CUDA device
	$(PYTHON_BIN) -m pytest -q -m gpu

lint: $(READY)  ## check rules and format with ruff
	$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m ruff format --check .

types: $(READY)  ## check types with mypy, strictly apart from the tests
	$(PYTHON_BIN) -m mypy
	$(PYTHON_BIN) -m mypy --implicit-reexport tests

format: $(READY)  ## rewrite the source in the project's format
	$(PYTHON_BIN) -m ruff check --fix .
	$(PYTHON_BIN) -m ruff format .

reference: $(READY)  ## write docs/reference/ and the table of keys again, after a key has changed
	PYTHONPATH=. $(PYTHON_BIN) tools/reference.py

wheel: $(READY)  ## build the wheel into dist/
	$(PYTHON_BIN) -m build --wheel

clean:  ## remove build results and caches; keep .venv, runs, data and weights
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find detector tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that make repeats an interrupted installation; pip skips installed packages.
$(READY): pyproject.toml
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
		echo "Setting up .venv with $$("$$python" --version)"; \
		"$$python" -m venv --clear .venv || { \
			echo 'make: .venv could not be created: on Debian and Ubuntu, install python3-venv' \
				'(apt install python3-venv), then run make again' >&2; \
			exit 1; \
		}; \
	}
	@echo 'Installing the package and its tools into .venv (the first time takes minutes)'
	@$(PYTHON_BIN) -m pip install --quiet --editable '.[dev]' || { \
		echo 'make: pip could not install the dependencies: check the connection to the package index' \
			'and the free disk space, then run make again' >&2; \
		exit 1; \
	}
	@touch $(READY)
