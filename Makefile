# make demo: everything once, on real pictures.  make test: is it still right?
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test lint soak bench clean

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $@

demo: venv
	$(BIN)/clipray demo

test: venv lint
	$(BIN)/python -m pytest -n 2 --dist loadfile  # half of the time is waiting for Ray to start

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

soak: venv
	$(BIN)/python -m pytest -m soak

bench: venv
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
