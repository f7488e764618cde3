# What generated images are compared with: a feature network, and real images seen through it.


rule make_feature_network:
    input:
        index=lambda wildcards: LAYOUT.index_of("network", wildcards.network),
    output:
        f"{RESULTS}/features/{{network}}/manifest.json",
    log:
        f"{LOGS}/make_feature_network/{{network}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.network.resources.threads
    resources:
        **resources_of(ACTIVE.evaluation.network.resources),
    params:
        config=owned("network"),
        index=lambda wildcards, input: [f"--index={path}" for path in input],
    shell:
        'exec python $WORKFLOW_SCRIPTS/make_feature_network.py --config {params.config:q} --operations "$OPERATIONS"'
        " {params.index} --output {output} --threads {threads} --log {log}"


rule make_reference:
    input:
        index=file_of("reference", "data", "index.json"),
        network=file_of("reference", "network", "manifest.json"),
    output:
        f"{RESULTS}/reference/{{reference}}/manifest.json",
    log:
        f"{LOGS}/make_reference/{{reference}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.evaluation.network.resources.threads
    resources:
        **resources_of(ACTIVE.evaluation.network.resources),
    params:
        config=owned("reference"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/make_reference.py --config {params.config:q} --operations "$OPERATIONS"'
        " --index {input.index} --network {input.network} --output {output} --threads {threads} --log {log}"
