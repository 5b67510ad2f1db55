"""From names to files on this machine; local, so that compute nodes need no network."""

IDENTITY = outputs_of("fetch_model")[0]
TOKENIZER = outputs_of("fetch_tokenizer")[0]
SHARD = outputs_of("fetch_dataset")[0]
WEIGHTS = outputs_of("fetch_weights")[0]


rule fetch_model:
    input:
        start=since(IDENTITY, START),
        files=since(IDENTITY, get_model_files),
    output:
        IDENTITY,
    log:
        log_of("fetch_model"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=get_fetch_model_settings,
        execution=get_fetch_model_execution,
    shell:
        r"""
        id_scaling fetch-model \
            --settings {params.settings:q} \
            --execution {params.execution:q} \
            --output {output:q} \
            2>&1 | tee {log:q} | to_terminal
        """


# A folder of its own for each run, so that what is extracted is not again when another run needs the same weights.
rule fetch_weights:
    input:
        model=IDENTITY,
        # Not read; but before there are contexts weights are of no use.
        contexts=get_contexts,
    output:
        unless_kept(directory(WEIGHTS)),
    log:
        log_of("fetch_weights"),
    localrule: True
    conda:
        "../../environment.yml"
    # As many as an extraction, which goes first: on one machine weights come when nothing is left to extract.
    threads: 8
    params:
        execution=get_fetch_weights_execution,
    shell:
        r"""
        id_scaling fetch-weights \
            --execution {params.execution:q} \
            --model {input.model:q} \
            --output {output:q} \
            2>&1 | tee {log:q} | to_terminal
        """


rule fetch_tokenizer:
    input:
        start=since(TOKENIZER, START),
        files=since(TOKENIZER, get_tokenizer_files),
    output:
        TOKENIZER,
    log:
        log_of("fetch_tokenizer"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=get_fetch_tokenizer_settings,
        execution=get_fetch_tokenizer_execution,
    shell:
        r"""
        id_scaling fetch-tokenizer \
            --settings {params.settings:q} \
            --execution {params.execution:q} \
            --output {output:q} \
            2>&1 | tee {log:q} | to_terminal
        """


rule fetch_dataset:
    input:
        start=since(SHARD, START),
        files=since(SHARD, get_shard_files),
    output:
        SHARD,
    log:
        log_of("fetch_dataset"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=get_fetch_dataset_settings,
    shell:
        r"""
        id_scaling fetch-dataset \
            --settings {params.settings:q} \
            --output {output:q} \
            2>&1 | tee {log:q} | to_terminal
        """
