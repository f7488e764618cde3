# Before the first slice: one step, one export, one evaluation of a few images, so that the first hour finds what would
# fail in the ninetieth. What it measures is under a contract of its own (label plan, sample count) and enters no table.


localrules:
    canary,


use rule train_generator as canary_train with:
    input:
        run=f"{RESULTS}/runs/{{run}}/config.json",
        latents=file_of("run", "data", "latents/train/manifest.json"),
        verification=file_of("run", "data", "verify_train.json"),
        encoder=file_of("run", "encoder", "export/metadata.json"),
        audit=file_of("run", "encoder", "export/audit.json"),
        init_from=lambda wildcards: LAYOUT.init_from("run", wildcards.run),
    output:
        f"{RESULTS}/runs/{{run}}/canary/exports/step_{{step}}/metadata.json",
    log:
        f"{LOGS}/{{run}}/canary_train_{{step}}.log",
    wildcard_constraints:
        step="1",


rule canary_sample:
    input:
        export=f"{RESULTS}/runs/{{run}}/canary/exports/step_1/metadata.json",
    output:
        f"{RESULTS}/runs/{{run}}/canary/samples/manifest.json",
    log:
        f"{LOGS}/{{run}}/canary_sample.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.resources.cores
    resources:
        **ranks_of(ACTIVE.evaluation.resources),
    params:
        config=owned("run", "evaluation.sampling"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/sample.py --config {params.config:q} --operations "$OPERATIONS"'
        " --export {input.export} --alpha 1 --seed 0 --canary --output {output} --threads {threads} --log {log}"


use rule evaluate as canary_evaluate with:
    input:
        samples=f"{RESULTS}/runs/{{run}}/canary/samples/manifest.json",
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        network=file_of("run", "network", "manifest.json"),
        reference=file_of("run", "reference", "manifest.json"),
    output:
        f"{RESULTS}/runs/{{run}}/canary/eval/metrics.json",
    log:
        f"{LOGS}/{{run}}/canary_evaluate.log",


rule canary:
    input:
        metrics=f"{RESULTS}/runs/{{run}}/canary/eval/metrics.json",
    output:
        f"{RESULTS}/runs/{{run}}/canary/passed.json",
    log:
        f"{LOGS}/{{run}}/canary.log",
    wildcard_constraints:
        run=LAYOUT.not_begun,
    conda:
        "../envs/drifting.yaml"
    shell:
        "exec python $WORKFLOW_SCRIPTS/pass_canary.py --metrics {input.metrics} --output {output} --log {log}"
