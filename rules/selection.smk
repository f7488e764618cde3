# Choosing on selection seeds, reporting on fresh ones: the claim set is drawn at the recommended export and guidance.


localrules:
    recommend,


rule recommend:
    input:
        last_k=f"{RESULTS}/runs/{{run}}/tables/last_k.json",
        sweep=f"{RESULTS}/runs/{{run}}/tables/alpha_sweep.json",
    output:
        f"{RESULTS}/runs/{{run}}/recommendation.json",
    log:
        f"{LOGS}/{{run}}/recommend.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(10),
    params:
        config=owned("run", "evaluation.selection"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/recommend.py --config {params.config:q} --operations "$OPERATIONS"'
        " --last-k {input.last_k} --sweep {input.sweep} --output {output} --log {log}"


rule sample_claim:
    input:
        recommendation=f"{RESULTS}/runs/{{run}}/recommendation.json",
        exports=lambda wildcards: LAYOUT.candidates(wildcards.run),
        index=lambda wildcards: LAYOUT.labels_of(wildcards.run),
    output:
        f"{RESULTS}/runs/{{run}}/claim/seed_{{seed}}/samples/manifest.json",
    log:
        f"{LOGS}/{{run}}/sample_claim_{{seed}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.resources.cores
    resources:
        **ranks_of(ACTIVE.evaluation.resources),
    params:
        config=owned("run", "evaluation.sampling"),
        samples=lambda wildcards: LAYOUT.find(
            "run", wildcards.run
        ).evaluation.report.samples,
        index=lambda wildcards, input: [f"--index={path}" for path in input.index],
    shell:
        'exec python $WORKFLOW_SCRIPTS/sample.py --config {params.config:q} --operations "$OPERATIONS"'
        " --recommendation {input.recommendation} --exports {input.exports} --seed {wildcards.seed}"
        " --samples {params.samples} {params.index} --output {output} --threads {threads} --log {log}"


use rule evaluate as evaluate_claim with:
    input:
        samples=f"{RESULTS}/runs/{{run}}/claim/seed_{{seed}}/samples/manifest.json",
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        network=file_of("run", "network", "manifest.json"),
        reference=file_of("run", "reference", "manifest.json"),
    output:
        f"{RESULTS}/runs/{{run}}/claim/seed_{{seed}}/metrics.json",
    log:
        f"{LOGS}/{{run}}/evaluate_claim_{{seed}}.log",


use rule evaluate as evaluate_claim_in_space with:
    input:
        samples=f"{RESULTS}/runs/{{run}}/claim/seed_{{seed}}/samples/manifest.json",
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        network=file_of_space("network"),
        reference=file_of_space("reference"),
    output:
        f"{RESULTS}/runs/{{run}}/claim/seed_{{seed}}/spaces/{{space}}/metrics.json",
    log:
        f"{LOGS}/{{run}}/evaluate_claim_{{seed}}_{{space}}.log",


rule audit_neighbours:
    input:
        samples=lambda wildcards: LAYOUT.claim_samples(wildcards.run),
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        network=file_of("run", "network", "manifest.json"),
        reference=file_of("run", "reference", "manifest.json"),
        index=file_of("run", "data", "index.json"),
        latents_train=trained_from("data", "latents/train/manifest.json"),
        latents_val=trained_from("data", "latents/val/manifest.json"),
        space_networks=lambda wildcards: LAYOUT.in_spaces(wildcards.run, "network"),
        space_references=lambda wildcards: LAYOUT.in_spaces(wildcards.run, "reference"),
    output:
        f"{RESULTS}/runs/{{run}}/neighbours/neighbours.json",
    log:
        f"{LOGS}/{{run}}/audit_neighbours.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.resources.threads
    resources:
        **one_device_of(ACTIVE.evaluation.resources),
    params:
        config=owned("run", "evaluation.neighbours", "evaluation.contract"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/audit_neighbours.py --config {params.config:q} --operations "$OPERATIONS"'
        " --samples {input.samples} --tokenizer {input.tokenizer} --network {input.network}"
        " --reference {input.reference} --index {input.index} --latents {input.latents_train} {input.latents_val}"
        " --space-networks {input.space_networks} --space-references {input.space_references}"
        " --output {output} --threads {threads} --log {log}"
