# make demo   install into .venv, then train a surrogate while its simulations run
# make test   install with what tests and docs need, then the whole suite, in three processes, which wait a part of the time
# make soak   a thousand small studies into which faults are injected; goes on where it was
# make bench-all   the benchmarks, the tests that run each in its tiny form, and variants that make test leaves out
# make pictures   the pictures of the live page, of watch and of the reports under docs/, of a fit and a sweep of some minutes
# make docs   the site of the documentation, in build/docs; opens without a network; with NOTEBOOK=force it runs the tutorial
# make lint   what pre-commit and CI check
# Another torch: make demo TORCH=torch (or any requirement that pip takes). Another Python: PYTHON=python3.12.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
NOTEBOOK ?= off
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: install install-test demo test docs pictures soak lint format bench bench-all clean
.DELETE_ON_ERROR:

install: $(VENV)/installed
install-test: $(VENV)/installed-test

# torch goes first and alone: a requirement met already keeps the CPU build where that is what there is.
$(VENV)/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "surrogate_flow needs Python 3.11 or later, and $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no ensurepip, so it cannot make $(VENV): apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install '$(TORCH)'
	@touch $@

$(VENV)/installed: $(VENV)/torch setup.cfg pyproject.toml
	$(PIP) install -e '.[networks]'
	@touch $@

# In one go: to resolve and to build again takes half a minute.
$(VENV)/installed-test: $(VENV)/torch setup.cfg pyproject.toml
	$(PIP) install -e '.[test,docs]'
	@touch $(VENV)/installed $@

demo: install
	$(BIN)/surrogate-flow fit --data workflows/heat2d.yaml --model models/fully_connected.yaml

test: install-test
	$(BIN)/pytest -n 3

docs: install-test
	rm -rf docs/api
	NOTEBOOK=$(NOTEBOOK) $(BIN)/sphinx-build -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

pictures: install-test
	PICTURES=docs PICTURES_OF=heat2d_nonlinear $(BIN)/pytest -q --timeout 900 tests/report/test_browser.py -k is_seen

soak: install-test
	$(BIN)/python tests/faults/soak.py

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(PIP) install -e '.[bench]'
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/reservoir.py
	$(BIN)/python benchmarks/clients.py --rounds 1
	$(BIN)/python benchmarks/spectral.py
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/gpu.py --quick
	$(BIN)/python benchmarks/ensemble.py --simulations 5000
	$(BIN)/python benchmarks/soak.py --minutes 1
	$(BIN)/python benchmarks/training.py --rounds 1
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/fanout.py
	$(BIN)/python benchmarks/sweep.py shared
	$(BIN)/python benchmarks/sweep.py local

bench-all: install-test bench
	$(BIN)/pytest -m bench

clean:
	rm -rf $(VENV) build docs/api *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
