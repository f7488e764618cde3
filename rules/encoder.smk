# The latent-MAE, and the export of its encoder. Training state lies undeclared below the encoder's folder.


rule train_encoder:
    input:
        latents=file_of("encoder", "data", "latents/train/manifest.json"),
        verification=file_of("encoder", "data", "verify_train.json"),
        tokenizer=file_of("encoder", "tokenizer", "manifest.json"),
        index=file_of("encoder", "data", "index.json"),
        crops=lambda wildcards: LAYOUT.crops_of(wildcards.encoder),
    output:
        f"{RESULTS}/encoders/{{encoder}}/trained.json",
    log:
        f"{LOGS}/train_encoder/{{encoder}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.encoder.resources.cores
    resources:
        **resources_of(ACTIVE.encoder.resources),
    params:
        config=owned("encoder"),
        crops=lambda wildcards, input: (
            [f"--crops {' '.join(input.crops)}"] if input.crops else []
        ),
    shell:
        'exec python $WORKFLOW_SCRIPTS/train_encoder.py --config {params.config:q} --operations "$OPERATIONS"'
        " {params.crops} --latents {input.latents} --verification {input.verification} --tokenizer {input.tokenizer}"
        " --index {input.index} --output {output} --threads {threads} --log {log}"


rule export_encoder:
    input:
        trained=f"{RESULTS}/encoders/{{encoder}}/trained.json",
        latents=file_of("encoder", "data", "latents/train/manifest.json"),
    output:
        f"{RESULTS}/encoders/{{encoder}}/export/metadata.json",
    log:
        f"{LOGS}/export_encoder/{{encoder}}.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        mem_mb=ACTIVE.encoder.resources.memory_mb,
        runtime=60,
    params:
        config=owned("encoder"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/export_encoder.py --config {params.config:q} --operations "$OPERATIONS"'
        " --trained {input.trained} --latents {input.latents} --output {output} --threads {threads} --log {log}"
