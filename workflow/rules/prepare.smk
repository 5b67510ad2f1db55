"""Bundled models and texts, made once on a machine, for all studies.

Models with checkpoints are trained here: minutes of one core, so submitted on a cluster. The text of 1946 and later is
held out for their evaluation.
"""

BUNDLED_MODEL = outputs_of("prepare_model")
BUNDLED_TEXTS = outputs_of("prepare_dataset")
HELD_IN = BUNDLED_TEXTS[1:]
TRAINED_TOKENIZER = outputs_of("train_tokenizer")[0]
TRAINED_MODELS = outputs_of("train_model")


rule prepare_model:
    output:
        weights=BUNDLED_MODEL[0],
        tokenizer=BUNDLED_MODEL[1],
    log:
        log_of("prepare_model"),
    localrule: True
    conda:
        "../../environment.yml"
    shell:
        r"""
        id_scaling prepare-model \
            --output "$(dirname {output.weights:q})" \
            2>&1 | tee {log:q} | to_terminal
        """


rule prepare_dataset:
    output:
        since_1946=BUNDLED_TEXTS[0],
        since_1900=BUNDLED_TEXTS[1],
        since_1790=BUNDLED_TEXTS[2],
    log:
        log_of("prepare_dataset"),
    localrule: True
    conda:
        "../../environment.yml"
    shell:
        r"""
        id_scaling prepare-dataset \
            --output "$(dirname {output.since_1946:q})" \
            2>&1 | tee {log:q} | to_terminal
        """


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
            2>&1 | tee {log:q} | to_terminal
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
            2>&1 | tee {log:q} | to_terminal
        """
