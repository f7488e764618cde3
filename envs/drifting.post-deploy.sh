#!/bin/sh
# Snakemake runs this once in the conda environment that it made from drifting.yaml, with the workflow's variables set. To have
# it run again after a change of constraints.txt, remove the environment (.snakemake/conda).
set -eu
python -m pip install --constraint "$WORKFLOW_SCRIPTS/../envs/constraints.txt" --editable "$WORKFLOW_SCRIPTS/.."
