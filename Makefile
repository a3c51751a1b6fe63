# Every target makes what it needs: a virtual environment in .venv and what pip puts there. Python 3.11 or newer is enough;
# uv, when it is on PATH, makes the installation faster. Stamps in .venv say what is installed, so a second run is quick.

PYTHON ?= python3
TEST_JOBS ?= 2
ARGS ?=

VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python
MADE := $(VENV)/pyvenv.cfg
PIP := $(PY) -m pip --disable-pip-version-check --quiet --quiet
UV := $(shell command -v uv 2>/dev/null)
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
PEERS := $(VENV)/.installed-peers
PYTEST := $(PY) -m pytest -n $(TEST_JOBS) --slow

# BLAS of NumPy and SciPy stays on one thread: the tests run side by side.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-parity test-night check docs clean

help:
	@echo "make demo         train a small language model on this machine and let it write (about 3 minutes)"
	@echo "make test         the test suite"
	@echo "make test-parity  the same programs in JAX, PyTorch and transformers (installs them)"
	@echo "make test-night   the slow profiles; writes bench/nightly/DATE.md"
	@echo "make check        lint, format, types, layers, doctests and fast tests, under a minute"
	@echo "make docs         the documentation as a site in site/"
	@echo "make clean        remove .venv, caches and build outputs"

demo: $(BASE)
	@$(BIN)/infini demo $(ARGS)

test: $(DEV)
	@$(PYTEST) tests --ignore=tests/parity $(ARGS)

test-parity: $(PEERS)
	@$(PYTEST) tests/parity $(ARGS)

test-night: $(PEERS)
	@$(PY) -m tools.night --jobs $(TEST_JOBS) $(ARGS)

check: $(DEV)
	@$(PY) -m tools.check $(ARGS)

docs: $(DEV)
	@$(PIP) install "mkdocs>=1.6"
	@$(PY) -m mkdocs build --strict --quiet && echo "site/index.html"

clean:
	@rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --- the environment ----------------------------------------------------------------------

# install EXTRAS: uv when there is one, and pip when uv fails, for example because packages come from pip's own configuration.
define install
	@echo "installing infini$(1)"
	@if [ -n "$(UV)" ] && "$(UV)" pip install --quiet --python $(PY) -e ".$(1)" 2>/dev/null; then :; \
	 else $(PIP) install -e ".$(1)"; fi
	@touch $@
endef

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "infini needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@if [ -n "$(UV)" ] && "$(UV)" venv --quiet --seed --python "$(PYTHON)" $(VENV) 2>/dev/null; then :; \
	 else $(PYTHON) -m venv $(VENV); fi

$(BASE): pyproject.toml | $(MADE)
	$(call install,[llm])

$(DEV): pyproject.toml | $(MADE)
	$(call install,[dev])
	@touch $(BASE)

# uv does not read pip.conf, where the wheel of PyTorch without CUDA may be found: the peers go through pip.
$(PEERS): pyproject.toml | $(DEV)
	@echo "installing infini[dev,peers]"
	@$(PIP) install -e ".[dev,peers]"
	@touch $@
