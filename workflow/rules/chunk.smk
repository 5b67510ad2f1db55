"""From a shard to contexts, plain and of each control; one file for all checkpoints that share a tokenizer."""

CONTEXTS = outputs_of("chunk_dataset")[0]


rule chunk_dataset:
    input:
        start=since(CONTEXTS, START),
        shard=since(CONTEXTS, SHARD),
        tokenizer=since(CONTEXTS, TOKENIZER),
        sources=since(CONTEXTS, get_text_sources),
    output:
        CONTEXTS,
    log:
        log_of("chunk_dataset"),
    benchmark:
        benchmark_of("chunk_dataset")
    wildcard_constraints:
        control=NONE,
    conda:
        "../../environment.yml"
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime=growing(240),
    params:
        settings=get_chunk_settings,
        execution=get_chunk_execution,
    shell:
        r"""
        RAYON_NUM_THREADS={threads} id_scaling chunk \
            --settings {params.settings:q} \
            --execution {params.execution:q} \
            --shard {input.shard:q} \
            --tokenizer {input.tokenizer:q} \
            --output {output:q} \
            2>&1 | tee {log:q} | to_terminal
        """


rule shuffle_contexts:
    input:
        start=since(CONTEXTS, START),
        contexts=since(CONTEXTS, CONTEXTS.replace("{control}", NONE)),
    output:
        CONTEXTS,
    log:
        log_of("shuffle_contexts"),
    benchmark:
        benchmark_of("shuffle_contexts")
    wildcard_constraints:
        control=one_of(name for name in STUDY.config.controls if name != NONE),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        settings=get_shuffle_settings,
    shell:
        r"""
        id_scaling shuffle \
            --settings {params.settings:q} \
            --contexts {input.contexts:q} \
            --output {output:q} \
            2>&1 | tee {log:q} | to_terminal
        """
