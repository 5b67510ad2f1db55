"""Bundled models and texts, made once on a machine, for all studies.

Models with checkpoints are trained here: minutes of one core, so submitted on a cluster. The text of 1946 and later is
held out for their evaluation.
"""

HELD_IN = ["<resources>/sotu/0001.parquet", "<resources>/sotu/0002.parquet"]
TRAINED_TOKENIZER = f"<resources>/{bundled.TRAINED_TOKENIZER}/tokenizer.json"
TRAINED_MODELS = [
    f"<resources>/{{model}}/step{step}/model.safetensors"
    for step in bundled.TRAINED_STEPS
]


rule prepare_model:
    output:
        weights="<resources>/smollm2-135m-instruct/model.safetensors",
        tokenizer="<resources>/smollm2-135m-instruct/tokenizer.json",
    log:
        "<resources>/logs/prepare_model.log",
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
        since_1946="<resources>/sotu/0000.parquet",
        since_1900="<resources>/sotu/0001.parquet",
        since_1790="<resources>/sotu/0002.parquet",
    log:
        "<resources>/logs/prepare_dataset.log",
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
        "<resources>/logs/train_tokenizer.log",
    benchmark:
        "<resources>/benchmarks/train_tokenizer.tsv"
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
        "<resources>/logs/train_model/{model}.log",
    benchmark:
        "<resources>/benchmarks/train_model/{model}.tsv"
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
