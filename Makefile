# `make demo` and `make test` need Python 3.11 or later and nothing else: they set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm

.PHONY: demo docs test test-faults test-ray test-vllm gpu-pack faults lint format install clean

demo: $(VENV)/.installed
	$(BIN)/tgdpo demo

test: lint $(VENV)/.installed-dev
	# One thread each: two workers with two threads on two cores wait for one another.
	# In the files' own order the small ones come last, so that both workers end together; xdist would take those of few
	# tests last, which are the longest.
	# tests/integration/test_gpu_check.py runs tests/gpu.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/faults --ignore tests/gpu

# The real Ray, in an environment of its own.
test-ray: $(VENV)-ray/.installed
	OMP_NUM_THREADS=1 $(VENV)-ray/bin/python -m pytest tests/integration/test_ray.py

# Kills, failing system calls, full disks, flipped bits, random input: a little of each.
# What needs strace or the right to mount is skipped without it. The counts stand at the end.
test-faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/faults

# All of each, in hours.
faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 TGDPO_KILLS=20 TGDPO_SCORE_KILLS=100 TGDPO_SYSCALL_STEP=1 TGDPO_FLIPS=1000 TGDPO_FUZZ=100000 \
		TGDPO_COMMANDS=40 TGDPO_MEMORY_LIMITS=12 \
		$(BIN)/python -m pytest tests/faults

# The documentation site, in site/html/. A broken link or reference is an error.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs site/html
	@echo "open site/html/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	# The repository root is the package: through this link it has the package's name whatever the checkout is called.
	mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/tgdpo
	cd $(VENV)/types && ../bin/mypy --config-file tgdpo/pyproject.toml \
		tgdpo/__init__.py tgdpo/__main__.py tgdpo/cli.py tgdpo/errors.py tgdpo/data tgdpo/pipeline tgdpo/stages

# The vllm engine with the real vLLM, its CPU build, in an environment of its own: it pins its own torch and transformers.
test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/unit/stages/score/engines tests/integration/test_vllm.py

# All that benchmarks/gpu_check.py needs on a card without a network, in gpu-pack/, for that machine's Python.
PACK_PYTHON ?= 3.12
gpu-pack: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu_pack.py --python $(PACK_PYTHON)

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

$(VENV)-ray/.installed: pyproject.toml constraints.txt
	test -x $(VENV)-ray/bin/python || $(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet -c constraints.txt -e '.[ray]' pytest
	touch $@

$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -r constraints-vllm.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-ray $(VLLM_VENV) build site *.egg-info tgdpo-demo gpu-pack gpu-results
