# What is published: fetched where there is internet (the head's machine), imported as exports where it is not needed.
# An imported network takes the place of its training.


localrules:
    fetch,


rule fetch:
    output:
        f"{RESULTS}/sources/{{source}}/manifest.json",
    log:
        f"{LOGS}/fetch/{{source}}.log",
    conda:
        "../envs/drifting.yaml"
    params:
        download=lambda wildcards: LAYOUT.download(wildcards.source),
    shell:
        "HF_HUB_OFFLINE=0 exec python $WORKFLOW_SCRIPTS/fetch.py --download {params.download:q}"
        " --output {output} --log {log}"


rule import_encoder:
    input:
        tokenizer=file_of("encoder", "tokenizer", "manifest.json"),
        fetched=lambda wildcards: LAYOUT.fetched_of("encoder", wildcards.encoder),
    output:
        f"{RESULTS}/encoders/{{encoder}}/export/metadata.json",
    log:
        f"{LOGS}/import_encoder/{{encoder}}.log",
    wildcard_constraints:
        encoder=LAYOUT.imported("encoder"),
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(60, ACTIVE.encoder.resources.memory_mb),
    params:
        config=owned("encoder"),
        fetched=lambda wildcards, input: [f"--fetched={path}" for path in input[1:]],
    shell:
        'exec python $WORKFLOW_SCRIPTS/import_network.py encoder --config {params.config:q} --operations "$OPERATIONS"'
        " --tokenizer {input.tokenizer} {params.fetched} --output {output} --threads {threads} --log {log}"


rule import_generator:
    input:
        run=f"{RESULTS}/runs/{{run}}/config.json",
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        fetched=lambda wildcards: LAYOUT.fetched_of("run", wildcards.run),
    output:
        f"{RESULTS}/runs/{{run}}/exports/step_{{step}}/metadata.json",
    log:
        f"{LOGS}/{{run}}/import_generator_{{step}}.log",
    wildcard_constraints:
        run=LAYOUT.imported("run"),
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(60, ACTIVE.training.resources.memory_mb),
    params:
        config=owned("run"),
        fetched=lambda wildcards, input: [f"--fetched={path}" for path in input[2:]],
    shell:
        'exec python $WORKFLOW_SCRIPTS/import_network.py generator --config {params.config:q} --operations "$OPERATIONS"'
        " --tokenizer {input.tokenizer} {params.fetched} --step {wildcards.step} --output {output}"
        " --threads {threads} --log {log}"


# Only imported networks match the constraints above; for them the rules that train are not meant.
ruleorder: import_encoder > export_encoder
ruleorder: import_generator > train_generator
