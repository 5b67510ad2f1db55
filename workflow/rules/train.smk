"""Models with checkpoints that are trained here: minutes of one core, so submitted on a cluster.

The text of 1946 and later is held out for their evaluation.
"""

HELD_IN = outputs_of("prepare_dataset")[1:]
TRAINED_TOKENIZER = outputs_of("train_tokenizer")[0]
TRAINED_MODELS = outputs_of("train_model")


rule train_tokenizer:
    input:
        start=since(TRAINED_TOKENIZER, START),
        texts=since(TRAINED_TOKENIZER, HELD_IN),
    output:
        TRAINED_TOKENIZER,
    log:
        log_of("train_tokenizer"),
    benchmark:
        benchmark_of("train_tokenizer")
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        settings=get_train_tokenizer_settings,
    shell:
        r"""
        RAYON_NUM_THREADS={threads} id_scaling train-tokenizer \
            --settings {params.settings:q} \
            --texts {input.texts:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule train_model:
    input:
        start=since(TRAINED_MODELS[0], START),
        texts=since(TRAINED_MODELS[0], HELD_IN),
        tokenizer=since(TRAINED_MODELS[0], TRAINED_TOKENIZER),
    output:
        TRAINED_MODELS,
    log:
        log_of("train_model"),
    benchmark:
        benchmark_of("train_model")
    wildcard_constraints:
        model=one_of(bundled.TRAINED),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        settings=get_train_model_settings,
    shell:
        r"""
        RAYON_NUM_THREADS={threads} id_scaling train-model \
            --settings {params.settings:q} \
            --texts {input.texts:q} \
            --tokenizer {input.tokenizer:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
