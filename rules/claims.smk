# Everything that a reader needs to check the numbers, in one folder; and the pointer to the active configuration's.
# What `snakemake --report` shows is declared here; where there is no training, there is nothing over training steps.


localrules:
    model,


IN_EVERY_BUNDLE = [
    *shown("Claim", "", "report.html"),
    *shown("Figures", "figures/", "claim_grid.png", "alpha_sweep.png"),
    *shown("Figures", "figures/", "alpha_strip.png", "neighbour_pairs.png"),
    *shown("Tables", "tables/", "claim.csv", "last_k.csv", "alpha_sweep.csv"),
]
OVER_TRAINING = [
    *shown("Figures", "figures/", "progress.png", "steps.png"),
    *shown("Tables", "tables/", "curve.csv"),
]


rule make_bundle:
    input:
        run=f"{RESULTS}/runs/{{run}}/config.json",
        archives=file_of("run", "data", "archives.json"),
        index=file_of("run", "data", "index.json"),
        latents_train=trained_from("data", "latents/train/manifest.json"),
        latents_val=trained_from("data", "latents/val/manifest.json"),
        verify_train=trained_from("data", "verify_train.json"),
        verify_val=trained_from("data", "verify_val.json"),
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        network=file_of("run", "network", "manifest.json"),
        reference=file_of("run", "reference", "manifest.json"),
        encoder=trained_from("encoder", "export/metadata.json"),
        audit=trained_from("encoder", "export/audit.json"),
        curve=lambda wildcards: LAYOUT.curve(wildcards.run),
        last_k=f"{RESULTS}/runs/{{run}}/tables/last_k.json",
        alpha_sweep=f"{RESULTS}/runs/{{run}}/tables/alpha_sweep.json",
        recommendation=f"{RESULTS}/runs/{{run}}/recommendation.json",
        claim=f"{RESULTS}/runs/{{run}}/tables/claim.json",
        claim_metrics=lambda wildcards: LAYOUT.table(wildcards.run, "claim"),
        metrics=lambda wildcards: LAYOUT.evaluations(wildcards.run),
        space=in_spaces("metrics"),
        space_table=in_spaces("table"),
        space_network=in_spaces("network"),
        space_reference=in_spaces("reference"),
        neighbours=f"{RESULTS}/runs/{{run}}/neighbours/neighbours.json",
        exports=lambda wildcards: LAYOUT.candidates(wildcards.run),
    output:
        done=f"{RESULTS}/bundles/{{run}}/claim_bundle.done",
        shown=[*IN_EVERY_BUNDLE, *OVER_TRAINING],
    log:
        f"{LOGS}/{{run}}/make_bundle.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(60, ACTIVE.evaluation.resources.memory_mb),
    params:
        config=lambda wildcards: LAYOUT.bundle_slice(wildcards.run),
        inputs=lambda wildcards, input: [
            f"{role}={path}" for role, path in named(input)
        ],
    shell:
        'exec python $WORKFLOW_SCRIPTS/make_bundle.py --config {params.config:q} --operations "$OPERATIONS"'
        " --run {wildcards.run} --inputs {params.inputs} --output {output.done} --log {log}"


use rule make_bundle as make_bundle_imported with:
    output:
        done=f"{RESULTS}/bundles/{{run}}/claim_bundle.done",
        shown=IN_EVERY_BUNDLE,
    wildcard_constraints:
        run=LAYOUT.imported("run"),


ruleorder: make_bundle_imported > make_bundle


rule claim_bundle:
    input:
        bundle=f"{LAYOUT.folder('bundle')}/claim_bundle.done",
    output:
        f"{RESULTS}/claim_bundle.done",
    log:
        f"{LOGS}/claim_bundle.log",
    conda:
        "../envs/drifting.yaml"
    shell:
        "exec python $WORKFLOW_SCRIPTS/point_claim.py --bundle {input.bundle} --output {output} --log {log}"


# The recommended generator of the active configuration as a folder that runs without this project: `snakemake model`.
rule model:
    input:
        f"{LAYOUT.folder('run')}/model/manifest.json",


rule export_model:
    input:
        recommendation=f"{RESULTS}/runs/{{run}}/recommendation.json",
        exports=lambda wildcards: LAYOUT.candidates(wildcards.run),
        tokenizer=file_of("run", "tokenizer", "manifest.json"),
        index=file_of("run", "data", "index.json"),
        claim=f"{RESULTS}/runs/{{run}}/tables/claim.json",
    output:
        f"{RESULTS}/runs/{{run}}/model/manifest.json",
    log:
        f"{LOGS}/{{run}}/export_model.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        **light(60, ACTIVE.evaluation.resources.memory_mb),
    shell:
        "exec python $WORKFLOW_SCRIPTS/export_model.py --recommendation {input.recommendation} --exports {input.exports}"
        " --tokenizer {input.tokenizer} --index {input.index} --claim {input.claim} --output {output} --log {log}"
