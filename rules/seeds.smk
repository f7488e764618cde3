# `snakemake seeds`: runs that differ in training.seed only, each brought to its claim, and their claims side by side.


localrules:
    seeds,
    tabulate_seeds,


rule seeds:
    input:
        lambda wildcards: LAYOUT.seeds_table,


rule tabulate_seeds:
    input:
        claims=lambda wildcards: list(LAYOUT.claims_of(wildcards.family).values()),
    output:
        f"{RESULTS}/seeds/{{family}}/table.json",
    log:
        f"{LOGS}/tabulate_seeds/{{family}}.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(10),
    params:
        claims=lambda wildcards: [
            f"{seed}={path}"
            for seed, path in LAYOUT.claims_of(wildcards.family).items()
        ],
    shell:
        "exec python $WORKFLOW_SCRIPTS/tabulate_seeds.py --claims {params.claims} --output {output} --log {log}"
