# Two commands: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pins were taken on Python 3.11 and hold for 3.12 and 3.13; 3.10 gets the newest versions that still support it.
PINS = $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS)

.PHONY: demo test lint types unit smoke clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "python3 (3.10 to 3.13) is needed; name it with PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision
	$(PIP) -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/everyformer run sla.speed bytetransformer.speed itransformer.etth1 --scale smoke --seeds 3 --out demo
	@echo
	@echo "The page on which the papers run:  $(BIN)/everyformer serve   then open http://127.0.0.1:8000"

test: $(VENV)/.installed lint types unit smoke

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy

unit: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

smoke: $(VENV)/.installed
	$(BIN)/everyformer verify --scale smoke --seeds 1 --out .smoke

clean:
	rm -rf $(VENV) demo .smoke .pytest_cache .mypy_cache .ruff_cache
