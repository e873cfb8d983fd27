# Everything runs in .venv, which `make install` makes with PYTHON (3.11 or newer).
PYTHON ?= python3
WORKDIR ?= runs/demo
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install test demo lint clean

install: $(STAMP)

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[cpu,tfds,test]'
	touch $@

test: install
	$(BIN)/python -m pytest

demo: install
	$(BIN)/python scripts/demo.py --workdir=$(WORKDIR)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
