# make demo: from nothing to pictures of clothes.  make test: all checks.  make faults, make fuzz: what the tool outlives,
# of which make test has a selection.  make bench: how fast, beside others, in some 15 minutes (ROUNDS=9 for more);
# make bench-quality: minutes of training to a quality, in hours.  All of them set up .venv themselves.

PYTHON ?= python3
BIN := .venv/bin
DEMO := outputs/demo
ROUNDS ?= 5
DEBIAN_ROOT := $(shell command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && echo yes)

.PHONY: demo test faults fuzz bench bench-quality lint dist clean

demo: .venv/installed data
	rm -rf $(DEMO)
	$(BIN)/ddpm-train experiment=quickstart out=$(DEMO)/run
	$(BIN)/ddpm-sample ckpt=$(DEMO)/run n=64 gif=true out=$(DEMO)/samples
	@echo
	@echo "The pictures:  $(DEMO)/samples/grid.png  $(DEMO)/samples/film.gif"
	@echo "How they came: $(DEMO)/run/samples/      $(DEMO)/run/loss.png"

test: .venv/installed-dev lint browser
	$(BIN)/python -m pytest -n auto --dist loadfile

faults: .venv/installed-dev
	$(BIN)/python -m pytest -n auto tests/faults --full

fuzz: .venv/installed-dev
	$(BIN)/python -m pytest -n auto tests/fuzz --full

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

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ .venv/installed

.venv/installed-bench: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[bench,eval]'
	@touch $@ .venv/installed

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
