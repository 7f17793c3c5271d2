# Tilework: `make demo` runs the main job, `make test` the tests; both set everything up first, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes share the tests. A test that hangs is ended after so many seconds and shows where it hangs.
PYTEST := $(BIN)/python -m pytest --timeout=300 --numprocesses=2 --dist=worksteal
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test slow lint ui bench setup lock clean

demo: setup
	$(BIN)/tilework demo

test: lint
	$(PYTEST) -m "not slow"

slow: setup
	$(PYTEST) -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

ui: setup
	$(BIN)/tilework ui

# The peers are large; they get an environment of their own.
bench: .venv-bench/installed
	.venv-bench/bin/python -m tests.bench

setup: $(VENV)/installed

# The locked packages; a changed lock makes a clean environment, so that nothing stale is left in it.
$(VENV)/locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tilework needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) from requirements.lock; this takes a minute or two"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python $(PIP_INSTALL) --require-hashes -r requirements.lock
	@touch $@

$(VENV)/installed: $(VENV)/locked pyproject.toml
	@$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv-bench/installed: pyproject.toml
	@$(PYTHON) -m venv --clear .venv-bench
	@.venv-bench/bin/python $(PIP_INSTALL) -e '.[bench]'
	@touch $@

# Rewrites requirements.lock from pyproject.toml. It holds for Python 3.11 on Linux; run it there.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP_INSTALL) pip-tools==7.6.2
	.venv-lock/bin/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --generate-hashes --no-annotate --no-header \
	    --no-emit-options --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	    --extra test --build-deps-for editable --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .venv-bench .venv-lock .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
