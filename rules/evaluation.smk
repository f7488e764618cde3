# Any evaluation of a run by its name: export (step), guidance (alpha), seed and number of samples.


localrules:
    tabulate,


rule sample:
    input:
        export=f"{RESULTS}/runs/{{run}}/exports/step_{{step}}/metadata.json",
        index=lambda wildcards: LAYOUT.labels_of(wildcards.run),
    output:
        f"{RESULTS}/runs/{{run}}/samples/step_{{step}}/alpha_{{alpha}}/seed_{{seed}}/n_{{n}}/manifest.json",
    log:
        f"{LOGS}/{{run}}/sample_{{step}}_{{alpha}}_{{seed}}_{{n}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.resources.cores
    resources:
        **ranks_of(ACTIVE.evaluation.resources),
    params:
        config=owned("run", "evaluation.sampling"),
        index=lambda wildcards, input: [f"--index={path}" for path in input.index],
    shell:
        'exec python $WORKFLOW_SCRIPTS/sample.py --config {params.config:q} --operations "$OPERATIONS"'
        " --export {input.export} --alpha {wildcards.alpha} --seed {wildcards.seed} --samples {wildcards.n}"
        " {params.index} --output {output} --threads {threads} --log {log}"


rule evaluate:
    input:
        samples=f"{RESULTS}/runs/{{run}}/samples/step_{{step}}/alpha_{{alpha}}/seed_{{seed}}/n_{{n}}/manifest.json",
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        network=file_of("run", "network", "manifest.json"),
        reference=file_of("run", "reference", "manifest.json"),
    output:
        f"{RESULTS}/runs/{{run}}/eval/step_{{step}}/alpha_{{alpha}}/seed_{{seed}}/n_{{n}}/metrics.json",
    log:
        f"{LOGS}/{{run}}/evaluate_{{step}}_{{alpha}}_{{seed}}_{{n}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.resources.threads
    resources:
        **one_device_of(ACTIVE.evaluation.resources),
    params:
        config=owned("run", "evaluation.contract"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/evaluate.py --config {params.config:q} --operations "$OPERATIONS"'
        " --samples {input.samples} --tokenizer {input.tokenizer} --network {input.network}"
        " --reference {input.reference} --output {output} --threads {threads} --log {log}"


rule tabulate:
    input:
        metrics=lambda wildcards: LAYOUT.table(wildcards.run, wildcards.table),
    output:
        f"{RESULTS}/runs/{{run}}/tables/{{table}}.json",
    log:
        f"{LOGS}/{{run}}/tabulate_{{table}}.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(10),
    shell:
        "exec python $WORKFLOW_SCRIPTS/make_table.py --title {wildcards.table} --metrics {input.metrics}"
        " --output {output} --log {log}"


# A sample set as images, when somebody asks for it; the latents are what is kept.
rule export_images:
    input:
        samples=f"{RESULTS}/runs/{{run}}/{{samples}}/manifest.json",
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        index=file_of("run", "data", "index.json"),
    output:
        f"{RESULTS}/runs/{{run}}/{{samples}}/export/{{format}}.done",
    log:
        f"{LOGS}/{{run}}/export/{{samples}}/{{format}}.log",
    wildcard_constraints:
        samples=r"samples/step_\d+/alpha_[0-9.]+/seed_\d+/n_\d+|claim/seed_\d+/samples",
        format="png|jpeg|tar|npz|sheet",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.resources.threads
    resources:
        **one_device_of(ACTIVE.evaluation.resources),
    params:
        config=owned("run", "evaluation.contract"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/export_images.py --config {params.config:q} --operations "$OPERATIONS"'
        " --format {wildcards.format} --samples {input.samples} --tokenizer {input.tokenizer} --index {input.index}"
        " --output {output} --threads {threads} --log {log}"
