"""The rules' functions, the Snakemake process and its supervision, SLURM, and where a folder stands. Light."""
