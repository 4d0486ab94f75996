# make demo           train on Fashion-MNIST and draw samples, from a bare clone
# make demo-colour    the same with emoji in colour, one row for each of nine classes
# make test           lint, types and tests, in about 8 minutes on 2 cores after installation
# make test-all       the slow tests too
# make faults, fuzz   all trials of the tests of failures and of random input
# make coverage       line coverage of ddpm_cli under make test
# make docs           write docs/configuration.md again
# make bench          speed beside other implementations, in 15 minutes (ROUNDS=9 for more)
# make bench-quality  minutes of training to a given quality, in hours
# make gpu-check      what only a machine with a CUDA device can show
# Each of them creates .venv if needed.

PYTHON ?= python3
BIN := .venv/bin
DEMO := outputs/demo
ROUNDS ?= 5
ACTIVATE = @echo "To use the commands yourself, type:  . .venv/bin/activate"
DEBIAN_ROOT := $(shell command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && echo yes)

.PHONY: demo demo-colour test test-all faults fuzz coverage docs bench bench-quality gpu-check lint dist clean

demo: .venv/installed data
	rm -rf $(DEMO)
	$(BIN)/ddpm-train experiment=quickstart out=$(DEMO)/run
	$(BIN)/ddpm-sample ckpt=$(DEMO)/run n=80 seed=1 gif=true out=$(DEMO)/samples
	@echo
	@echo "Samples and how they were denoised:  $(DEMO)/samples/grid.png  $(DEMO)/samples/film.gif"
	@echo "The run: $(DEMO)/run/samples/  $(DEMO)/run/loss.png"
	$(ACTIVATE)

demo-colour: .venv/installed emoji
	rm -rf $(DEMO)-colour
	$(BIN)/ddpm-train experiment=emoji out=$(DEMO)-colour/run
	$(BIN)/ddpm-sample ckpt=$(DEMO)-colour/run n=32 class=flags seed=1 out=$(DEMO)-colour/flags
	@echo
	@echo "All classes: $(DEMO)-colour/run/samples/"
	@echo "New flags:   $(DEMO)-colour/flags/grid.png"
	$(ACTIVATE)

# A worker for each core, and one thread for each worker: torch's threads wait busily for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=10

test: .venv/installed-dev lint browser emoji
	$(PYTEST)

test-all: .venv/installed-dev lint browser emoji
	$(PYTEST) --slow

faults: .venv/installed-dev
	$(PYTEST) tests/faults --slow --full

fuzz: .venv/installed-dev
	$(PYTEST) tests/fuzz --slow --full

coverage: .venv/installed-dev browser
	$(PYTEST) --cov=ddpm_cli --cov-report=term-missing:skip-covered

docs: .venv/installed-dev
	$(BIN)/python docs/make_configuration.py

gpu-check: .venv/installed-dev data
	$(BIN)/python tests/gpu/device_check.py

bench: .venv/installed-bench data
	$(BIN)/python -m tests.benchmarks --rounds $(ROUNDS)

bench-quality: .venv/installed-bench data
	$(BIN)/python -m tests.benchmarks quality

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

dist: .venv/installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# Fashion-MNIST from Debian where that can be installed; elsewhere ddpm-train downloads it once.
.PHONY: data
data:
ifeq ($(DEBIAN_ROOT),yes)
	@test -d /usr/share/datasets/fashion-mnist || apt-get install -y -q dataset-fashion-mnist \
		|| (apt-get update -q && apt-get install -y -q dataset-fashion-mnist) || true
endif

# The emoji of dataset=emoji, from Debian too; where they cannot be installed, the tests of them are skipped.
.PHONY: emoji
emoji:
ifeq ($(DEBIAN_ROOT),yes)
	@test -f /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf -a -f /usr/share/unicode/emoji/emoji-test.txt \
		|| apt-get install -y -q fonts-noto-color-emoji unicode-data \
		|| (apt-get update -q && apt-get install -y -q fonts-noto-color-emoji unicode-data) || true
endif

# Debian's chromium for the tests of ddpm-report's page; where it cannot be installed they are skipped.
.PHONY: browser
browser:
ifeq ($(DEBIAN_ROOT),yes)
	@test -x /usr/bin/chromedriver || apt-get install -y -q chromium chromium-driver \
		|| (apt-get update -q && apt-get install -y -q chromium chromium-driver) || true
endif

.venv/bin/python:
ifeq ($(DEBIAN_ROOT),yes)
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || (apt-get update -q && apt-get install -y -q python3-venv)
endif
	$(PYTHON) -m venv .venv

# Without an NVIDIA driver, the CPU builds of torch and torchvision, if pip is configured with an index that has both.
# They are gigabytes smaller.
cpu_build = $(BIN)/python -m pip index versions $(1) 2>/dev/null | grep -o '[0-9][0-9.]*+cpu' | head -n 1
.venv/torch: | .venv/bin/python
	@[ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1 || { \
		torch=$$($(call cpu_build,torch)); vision=$$($(call cpu_build,torchvision)); \
		[ -z "$$torch" ] || [ -z "$$vision" ] || \
		$(BIN)/python -m pip install -q "torch==$$torch" "torchvision==$$vision" 2>/dev/null || true; }
	@touch $@

.venv/installed: pyproject.toml .venv/torch
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/installed-dev: pyproject.toml .venv/torch
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ .venv/installed

.venv/installed-bench: pyproject.toml .venv/torch
	$(BIN)/python -m pip install -q -e '.[bench,eval]'
	@touch $@ .venv/installed

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
