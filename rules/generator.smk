# The drifting generator, in slices: one job per milestone, each continuing the one before. A slice that is killed resumes
# inside itself; a finished one stands for its export, which is evaluated while the next slice trains.


localrules:
    record_run,


rule record_run:
    output:
        f"{RESULTS}/runs/{{run}}/config.json",
    log:
        f"{LOGS}/{{run}}/record_run.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(10),
    params:
        config=owned("run"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/record_run.py --config {params.config:q} --values "$CONFIGURATION"'
        " --output {output} --log {log}"


rule train_generator:
    input:
        run=f"{RESULTS}/runs/{{run}}/config.json",
        before=lambda wildcards: LAYOUT.slice_before(wildcards.run, int(wildcards.step)),
        canary=lambda wildcards: LAYOUT.canary(wildcards.run, int(wildcards.step)),
        latents=file_of("run", "data", "latents/train/manifest.json"),
        verification=file_of("run", "data", "verify_train.json"),
        encoder=file_of("run", "encoder", "export/metadata.json"),
        audit=file_of("run", "encoder", "export/audit.json"),
        init_from=lambda wildcards: LAYOUT.init_from("run", wildcards.run),
    output:
        f"{RESULTS}/runs/{{run}}/exports/step_{{step}}/metadata.json",
    log:
        f"{LOGS}/{{run}}/train_generator_{{step}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.training.resources.cores
    resources:
        **ranks_of(ACTIVE.training.resources),
    params:
        config=owned("run"),
        init_from=lambda wildcards, input: [
            f"--init-from={path}" for path in input.init_from
        ],
    shell:
        'exec python $WORKFLOW_SCRIPTS/train_generator.py --config {params.config:q} --operations "$OPERATIONS"'
        " --until {wildcards.step} --latents {input.latents} --verification {input.verification}"
        " --encoder {input.encoder} --audit {input.audit} {params.init_from} --output {output} --threads {threads} --log {log}"
