# The latent-MAE, the export of its encoder, and the audit of that. Training state lies undeclared below the encoder's
# folder. A fine-tune is a training that starts from another encoder's export.


localrules:
    encoders,


rule train_encoder:
    input:
        latents=file_of("encoder", "data", "latents/train/manifest.json"),
        verification=file_of("encoder", "data", "verify_train.json"),
        tokenizer=file_of("encoder", "tokenizer", "manifest.json"),
        index=file_of("encoder", "data", "index.json"),
        crops=lambda wildcards: LAYOUT.crops_of(wildcards.encoder),
        init_from=lambda wildcards: LAYOUT.init_from("encoder", wildcards.encoder),
    output:
        f"{RESULTS}/encoders/{{encoder}}/trained.json",
    log:
        f"{LOGS}/train_encoder/{{encoder}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.encoder.resources.cores
    resources:
        **ranks_of(ACTIVE.encoder.resources),
    params:
        config=owned("encoder"),
        crops=lambda wildcards, input: (
            [f"--crops {' '.join(input.crops)}"] if input.crops else []
        ),
        init_from=lambda wildcards, input: [
            f"--init-from={path}" for path in input.init_from
        ],
    shell:
        'exec python $WORKFLOW_SCRIPTS/train_encoder.py --config {params.config:q} --operations "$OPERATIONS"'
        " {params.crops} {params.init_from} --latents {input.latents} --verification {input.verification} --tokenizer {input.tokenizer}"
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
        **light(60, ACTIVE.encoder.resources.memory_mb),
    params:
        config=owned("encoder"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/export_encoder.py --config {params.config:q} --operations "$OPERATIONS"'
        " --trained {input.trained} --latents {input.latents} --output {output} --threads {threads} --log {log}"


rule audit_encoder:
    input:
        encoder=f"{RESULTS}/encoders/{{encoder}}/export/metadata.json",
        train=file_of("encoder", "data", "latents/train/manifest.json"),
        val=file_of("encoder", "data", "latents/val/manifest.json"),
    output:
        f"{RESULTS}/encoders/{{encoder}}/export/audit.json",
    log:
        f"{LOGS}/audit_encoder/{{encoder}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.encoder.resources.threads
    resources:
        **one_device_of(ACTIVE.encoder.resources),
    params:
        config=owned("encoder"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/audit_encoder.py --config {params.config:q} --operations "$OPERATIONS"'
        " --encoder {input.encoder} --train {input.train} --val {input.val} --output {output}"
        " --threads {threads} --log {log}"


rule encoders:
    input:
        LAYOUT.audits(),
