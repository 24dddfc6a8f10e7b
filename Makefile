# `make demo` and `make test` need Python 3.11 or later and nothing else: they set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test faults lint format install clean

demo: $(VENV)/.installed
	$(BIN)/tgdpo demo

test: lint $(VENV)/.installed-dev
	# One thread each: two workers with two threads on two cores wait for one another.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Training killed twenty times at random moments, in every way; `make test` does it three times.
faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 TGDPO_KILLS=20 $(BIN)/python -m pytest tests/faults

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	# The repository root is the package: through this link it has the package's name whatever the checkout is called.
	mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/tgdpo
	cd $(VENV)/types && ../bin/mypy --config-file tgdpo/pyproject.toml \
		tgdpo/__init__.py tgdpo/__main__.py tgdpo/cli.py tgdpo/errors.py tgdpo/data tgdpo/pipeline tgdpo/stages

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info tgdpo-demo
