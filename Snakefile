# From image archives to a verified claim bundle. What is made, and from what, follows from the configuration alone:
# no checkpoint rules, nothing polls. Rules hold data in, data out and resources; the scripts hold the work.
from snakemake.utils import min_version

min_version("9.14")

# Of the checkout, also where workflow/Snakefile includes this file.
ROOT = str(workflow.current_basedir)


if not workflow.overwrite_configfiles:

    configfile: f"{ROOT}/config/demo.yaml"


# For --sdm apptainer alone; envs/README.md says how it is built.
container: f"{ROOT}/envs/drifting.sif"


# The first page of `snakemake --report`.
report: "report/workflow.rst"


include: "rules/common.smk"


localrules:
    all,
    claim_bundle,


rule all:
    default_target: True
    input:
        f"{RESULTS}/claim_bundle.done",


include: "rules/data.smk"
include: "rules/tokenizer.smk"
include: "rules/reference.smk"
include: "rules/encoder.smk"
include: "rules/generator.smk"
include: "rules/evaluation.smk"
include: "rules/canary.smk"
include: "rules/selection.smk"
include: "rules/claims.smk"
include: "rules/seeds.smk"
include: "rules/sources.smk"
