# Archives to a verified latent store. Nothing is extracted: images are read by byte offset inside the tars. (An
# ImageFolder is made when somebody asks for it.)


rule pack_images:
    output:
        f"{RESULTS}/archives/{{pack}}/packed.json",
    log:
        f"{LOGS}/pack_images_{{pack}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.data.resources.threads
    resources:
        **resources_of(ACTIVE.data.resources),
    params:
        config=LAYOUT.pack_slice,
    shell:
        'exec python $WORKFLOW_SCRIPTS/pack_images.py --config {params.config:q} --operations "$OPERATIONS"'
        " --output {output} --threads {threads} --log {log}"


rule check_archives:
    input:
        packed=lambda wildcards: LAYOUT.packed_of(wildcards.data),
    output:
        f"{RESULTS}/data/{{data}}/archives.json",
    log:
        f"{LOGS}/{{data}}/check_archives.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.data.resources.threads
    resources:
        **resources_of(ACTIVE.data.resources),
    params:
        config=owned("data"),
        packed=lambda wildcards, input: [f"--packed={path}" for path in input],
    shell:
        'exec python $WORKFLOW_SCRIPTS/check_archives.py --config {params.config:q} --operations "$OPERATIONS"'
        " {params.packed} --output {output} --threads {threads} --log {log}"


rule index_archives:
    input:
        archives=f"{RESULTS}/data/{{data}}/archives.json",
    output:
        f"{RESULTS}/data/{{data}}/index.json",
    log:
        f"{LOGS}/{{data}}/index_archives.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.data.resources.threads
    resources:
        **resources_of(ACTIVE.data.resources),
    params:
        config=owned("data"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/index_archives.py --config {params.config:q} --operations "$OPERATIONS"'
        " --archives {input.archives} --output {output} --threads {threads} --log {log}"


rule make_image_folder:
    input:
        index=f"{RESULTS}/data/{{data}}/index.json",
    output:
        f"{RESULTS}/data/{{data}}/imagefolder.done",
    log:
        f"{LOGS}/{{data}}/make_image_folder.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.data.resources.threads
    resources:
        **resources_of(ACTIVE.data.resources),
    params:
        config=owned("data"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/make_image_folder.py --config {params.config:q} --operations "$OPERATIONS"'
        " --index {input.index} --output {output} --threads {threads} --log {log}"


rule encode_latents:
    input:
        index=f"{RESULTS}/data/{{data}}/index.json",
        tokenizer=file_of("data", "tokenizer", "manifest.json"),
    output:
        f"{RESULTS}/data/{{data}}/latents/{{split}}/shard_{{shard}}.json",
    log:
        f"{LOGS}/{{data}}/encode_latents_{{split}}_{{shard}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.data.latents.resources.threads
    resources:
        **resources_of(ACTIVE.data.latents.resources),
    params:
        config=owned("data"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/encode_latents.py --config {params.config:q} --operations "$OPERATIONS"'
        " --split {wildcards.split} --shard {wildcards.shard} --index {input.index} --tokenizer {input.tokenizer}"
        " --output {output} --threads {threads} --log {log}"


rule combine_latents:
    input:
        index=f"{RESULTS}/data/{{data}}/index.json",
        shards=lambda wildcards: LAYOUT.shards(wildcards.data, wildcards.split),
    output:
        f"{RESULTS}/data/{{data}}/latents/{{split}}/manifest.json",
    log:
        f"{LOGS}/{{data}}/combine_latents_{{split}}.log",
    conda:
        "../envs/drifting.yaml"
    resources:
        **resources_of(ACTIVE.data.resources),
    params:
        config=owned("data"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/combine_latents.py --config {params.config:q} --operations "$OPERATIONS"'
        " --split {wildcards.split} --index {input.index} --shards {input.shards} --output {output}"
        " --threads {threads} --log {log}"


rule verify_latents:
    input:
        index=f"{RESULTS}/data/{{data}}/index.json",
        latents=f"{RESULTS}/data/{{data}}/latents/{{split}}/manifest.json",
    output:
        f"{RESULTS}/data/{{data}}/verify_{{split}}.json",
    log:
        f"{LOGS}/{{data}}/verify_latents_{{split}}.log",
    conda:
        "../envs/drifting.yaml"
    threads: ACTIVE.data.resources.threads
    resources:
        **resources_of(ACTIVE.data.resources),
    params:
        config=owned("data"),
    shell:
        'exec python $WORKFLOW_SCRIPTS/verify_latents.py --config {params.config:q} --operations "$OPERATIONS"'
        " --index {input.index} --latents {input.latents} --output {output} --threads {threads} --log {log}"
