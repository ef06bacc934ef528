# The commands of the README. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
RUN ?= runs/quickstart
# what the quickstart's sampling and scoring add on the command line, for a short trial of it
TRAIN_ARGS ?=
SCORE_ARGS ?=
BENCH ?=

.PHONY: help install quickstart test test-all faults check bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## makes .venv with every locked dependency and this project

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

quickstart: install  ## data, training, pictures and scores on the embedded stack (about 15 minutes)
	$(BIN)/python scripts/make_shards.py source=shapes out=data/shapes
	$(BIN)/python scripts/train.py experiment=quickstart run_dir=$(RUN) resume=auto $(TRAIN_ARGS)
	$(BIN)/python scripts/evaluate.py checkpoint=$(RUN) compare=tiny out=$(RUN)/report $(SCORE_ARGS)

test: install  ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-all: install  ## all tests, also the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not faults"

faults: install  ## the fault campaign: kills, full disks, signals, hangs (LDM_FAULTS_TRIALS=50)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -m faults

check: install  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict ldm/diffusion ldm/sampling

bench: install  ## everything beside its peers, as ratios (BENCH="train_step --quick"; docs/performance.md)
	$(BIN)/python benchmarks/run.py $(BENCH)

clean:  ## removes caches, not runs or data
	rm -rf .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
