"""Models with checkpoints that are trained here: minutes of one core, so submitted on a cluster.

The text of 1946 and later is held out for their evaluation.
"""

HELD_IN = ["<resources>/sotu/0001.parquet", "<resources>/sotu/0002.parquet"]


rule train_tokenizer:
    input:
        texts=HELD_IN,
    output:
        f"<resources>/{bundled.TRAINED_TOKENIZER}/tokenizer.json",
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
            2>&1 | tee {log:q}
        """


rule train_model:
    input:
        texts=HELD_IN,
        tokenizer=f"<resources>/{bundled.TRAINED_TOKENIZER}/tokenizer.json",
    output:
        expand(
            "<resources>/{{model}}/step{step}/model.safetensors",
            step=bundled.TRAINED_STEPS,
        ),
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
            2>&1 | tee {log:q}
        """
