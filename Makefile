# `make demo` and `make test` need nothing but Python >= 3.11; everything else is set up in .venv.
.POSIX:
.DELETE_ON_ERROR:
.PHONY: help setup demo encoders toy test test-all check parity benchmark benchmark-data benchmark-evaluation benchmark-training plan rates runs prune stub smoke test-fast docs clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CONFIG ?= config/demo.yaml
RATES ?= config/rates.yaml

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv with the pinned packages

$(READY): pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one with: make PYTHON=python3.12 ...")'
	@echo "setting up .venv: about 140 packages, 1.9 GB with a CPU build of torch; one to five minutes, and quiet"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint envs/constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## the whole pipeline on real photos, to a claim bundle (about 10 minutes on 2 cores)
	$(BIN)/python workflow_scripts/run_workflow.py --profile profiles/local results/claim_bundle.done
	@$(BIN)/python workflow_scripts/show_claim.py results/claim_bundle.done

smoke: $(READY) ## the clean-room check of a new machine: archives to bundle, everything promised is there (about a minute)
	rm -rf results_smoke
	$(BIN)/python workflow_scripts/run_workflow.py --profile profiles/local results_smoke/claim_bundle.done --configfile config/smoke.yaml
	@$(BIN)/python workflow_scripts/smoke.py --configfile config/smoke.yaml

# The demo's encoder without the fine-tune inside its training, and with one after it; a thread each, so that widths train side by side.
ENCODERS := encoder={variants: [64], resources: {threads: 1}, training: {steps: 420, finetune_steps: 0, finetune_ramp_steps: 0, finetune_weight: 0}, \
	finetune: {steps: 300, batch: 64, learning_rate: 1.0e-3, warmup_steps: 10, ramp_steps: 40, weight: 0.3, ema: 0.98}}

encoders: $(READY) ## encoders of two widths, fine-tuned and audited, on the photos of the demo (5 to 10 minutes on 2 cores)
	$(BIN)/python workflow_scripts/run_workflow.py encoders --profile profiles/local --config '$(ENCODERS)'
	@$(BIN)/python workflow_scripts/show_encoders.py results/encoders/*/export/audit.json

toy: $(READY) ## the method on two-dimensional data, beside the published loss (about 10 minutes on 2 cores)
	@$(BIN)/python workflow_scripts/run_toy.py results/toy

# Processes that the tests are shared out to (0: none but pytest's own). Jobs of a workflow under test compute, too.
WORKERS ?= 2

test: $(READY) ## everything that a change must pass
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(WORKERS) --no-loadscope-reorder

test-fast: $(READY) ## unit tests that start nothing and train nothing long (under a minute)
	$(BIN)/python -m pytest tests/unit -m fast --numprocesses $(WORKERS) --no-loadscope-reorder

test-all: $(READY) ## also the tests marked slow
	$(BIN)/python -m pytest

check: $(READY) ## formatting, lint, types and spelling only: the hooks of .pre-commit-config.yaml
	$(BIN)/python -m pytest tests/test_style.py

benchmark: $(READY) ## time and memory of the objective; with a GPU, of whole steps as well (the tables of docs/performance.md)
	$(BIN)/python -m tests.benchmarks.objective

benchmark-training: $(READY) ## a generator's step: rate, where its time goes, what a state costs: make benchmark-training CONFIG=...
	$(BIN)/python -m tests.benchmarks.step --configfile $(CONFIG) --steps 30
	$(BIN)/python -m tests.benchmarks.step --configfile $(CONFIG) --steps 5 --state-megabytes 2100

benchmark-data: $(READY) ## the data path: index, gathers, images by offset (tables of docs/performance.md; 6 minutes, 3 GB)
	$(BIN)/python -m tests.benchmarks.data

benchmark-evaluation: $(READY) ## Frechet distance, images a second, the neighbour search (tables of docs/performance.md; 2 minutes)
	$(BIN)/python -m tests.benchmarks.evaluation

parity: $(READY) ## FID, IS, KID, precision and recall beside torch-fidelity's, in an environment of its own (.venv-parity)
	$(BIN)/python -m tests.parity.against_torch_fidelity

plan: $(READY) ## what a configuration would run and cost, and whether it can work: make plan CONFIG=config/l2.yaml
	@$(BIN)/python workflow_scripts/plan.py --configfile $(CONFIG) --rates $(RATES)

rates: $(READY) ## rates of this machine, for plans (make plan RATES=results/rates.yaml): in a job with a GPU, CONFIG=config/ablation.yaml
	@$(BIN)/python workflow_scripts/measure_rates.py --configfile $(CONFIG)

runs: $(READY) ## all runs in results/: state, numbers, cost, what they differ in
	@$(BIN)/python workflow_scripts/runs.py

prune: $(READY) ## what can go from results/, what stays and why; removes nothing
	@$(BIN)/python workflow_scripts/prune.py

# No job computes, so that many may run on few cores.
stub: $(READY) ## every job of a configuration writes a stub, below stub/: make stub CONFIG=config/l2.yaml (half a minute on 2 cores)
	$(BIN)/python workflow_scripts/run_workflow.py --profile profiles/local --cores 16 --configfile $(CONFIG) --config stub=true

docs: $(READY) ## write the generated pages: configuration, modules, the picture of the rooms, the costs in docs/imagenet.md
	$(BIN)/python -m docs.making

clean: ## remove the virtual environment and caches; results stay
	rm -rf .venv .venv-parity .pytest_cache .mypy_cache .ruff_cache .hypothesis
