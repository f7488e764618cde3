"""Paths for the rules, the Snakemake process and its supervision, SLURM, and the status page."""
