# The autoencoder between pixels and latents: fetched, taken from a folder, or (for the demo) trained.


rule make_tokenizer:
    input:
        index=lambda wildcards: LAYOUT.index_of("tokenizer", wildcards.tokenizer),
        fetched=lambda wildcards: LAYOUT.fetched_of("tokenizer", wildcards.tokenizer),
    output:
        f"{RESULTS}/tokenizer/{{tokenizer}}/manifest.json",
    log:
        f"{LOGS}/make_tokenizer/{{tokenizer}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.tokenizer.resources.threads
    resources:
        **resources_of(ACTIVE.tokenizer.resources),
    params:
        config=owned("tokenizer"),
        given=lambda wildcards, input: [
            f"--{role}={path}" for role, path in named(input)
        ],
    shell:
        'exec python $WORKFLOW_SCRIPTS/make_tokenizer.py --config {params.config:q} --operations "$OPERATIONS"'
        " {params.given} --output {output} --threads {threads} --log {log}"
