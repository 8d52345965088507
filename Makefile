# All targets do everything on a machine that has python3, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# Two processes with half of the processors each: most tests wait for a program that starts, or for one thread.
WORKERS ?= 2
THREADS ?= $(shell $(PYTHON) -c 'import os; print(max(1, (os.cpu_count() or 1) // $(WORKERS)))')
QUICK := architecture golden config_factory training_config settings samplers ddim denoiser unet diffusion checkpoint images

.PHONY: demo web test quick lowest gpu clean

demo: $(VENV)/installed
	$(BIN)/artfusion demo --output outputs/demo.png

web: $(VENV)/installed-web
	$(BIN)/artfusion web

test: $(VENV)/installed-test
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# What breaks most often, while one works.
quick: $(VENV)/installed-test
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -x -m "not slow" $(QUICK:%=tests/test_%.py)

# The same with the lowest versions that pyproject.toml states; what those versions warn of is theirs.
lowest:
	test -x $(LOWEST)/bin/uv || { $(PYTHON) -m venv $(LOWEST) && $(LOWEST)/bin/python -m pip install -qq uv; }
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	$(LOWEST)/bin/python -m pytest -x -m "not slow" -W default $(QUICK:%=tests/test_%.py)

gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu_run.py --output outputs/gpu --minutes 9

# What painting and training need, and what the tests need on top of it.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch and its libraries are a few GB, which takes some minutes"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -qq --editable .
	touch $@

$(VENV)/installed-web: $(VENV)/installed
	$(BIN)/python -m pip install -qq --editable '.[web]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install -qq --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) outputs build *.egg-info
