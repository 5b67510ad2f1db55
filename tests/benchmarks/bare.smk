# The same jobs as a study's, by file name alone: what they cost the engine without anything of ours.
from itertools import product

from id_scaling.storage import layout

MODELS = [
    (model["model_name"].replace("/", "--"), checkpoint)
    for model in config["model_config"]
    for checkpoint in model["model_checkpoint"]
]
TEXTS = product(
    [config["dataset_config"]["dataset_name"]],
    config["dataset_config"]["dataset_subset"],
)
RUNS = [
    dict(zip(layout.AXES, (*model, *text, config["ctx_len"], "none")))
    for model, text in product(MODELS, TEXTS)
]
CACHEING = config["cacheing_config"]
MODULES = CACHEING["module_inblock_keys"] + CACHEING["module_outblock_keys"]
MANIFESTS = [f"results/{layout.MANIFEST}".format(**run) for run in RUNS]
TABLES = [
    f"results/{layout.TABLE}".format(**run, module=module, estimator=estimator)
    for run in RUNS
    for module in MODULES
    for estimator in CACHEING["save_IDs_list"]
]
MANIFEST, TABLE, BATCH, TOKENS = (
    f"results/{path}"
    for path in (layout.MANIFEST, layout.TABLE, layout.BATCH, layout.TOKENS)
)
IDENTITIES = {kind: f"results/{path}" for kind, path in layout.IDENTITIES.items()}
CONTEXTS, WEIGHTS = f"results/{layout.CONTEXTS}", f"results/{layout.WEIGHTS}"
CONTEXTS_OF_RUN = CONTEXTS.replace("{tokenizer}", "{model}")


rule all:
    input:
        MANIFESTS,
        TABLES,
        multiext("results/summary", ".parquet", ".csv", ".txt"),
        multiext("results/figures/id_by_layer", ".html", ".svg", ".png"),


rule fetch_model:
    output:
        IDENTITIES["models"],
    shell:
        "touch {output}"


rule fetch_weights:
    input:
        IDENTITIES["models"],
        CONTEXTS_OF_RUN,
    output:
        directory(WEIGHTS),
    shell:
        "mkdir -p {output}"


rule fetch_tokenizer:
    output:
        IDENTITIES["tokenizers"],
    shell:
        "touch {output}"


rule fetch_dataset:
    output:
        IDENTITIES["datasets"],
    shell:
        "touch {output}"


rule chunk_dataset:
    input:
        IDENTITIES["datasets"],
        IDENTITIES["tokenizers"],
    output:
        CONTEXTS,
    shell:
        "touch {output}"


rule extract_activations:
    input:
        CONTEXTS_OF_RUN,
        IDENTITIES["models"],
        WEIGHTS,
    output:
        MANIFEST,
        TOKENS,
    shell:
        "touch {output}"


rule estimate_batch:
    input:
        MANIFEST,
    output:
        temp(BATCH),
    shell:
        "touch {output}"


rule estimate_dimension:
    input:
        MANIFEST,
        BATCH,
    output:
        TABLE,
    shell:
        "touch {output}"


rule summarize:
    input:
        MANIFESTS,
        TABLES,
    output:
        multiext("results/summary", ".parquet", ".csv", ".txt"),
    shell:
        "touch {output}"


rule plot:
    input:
        "results/summary.parquet",
    output:
        multiext("results/figures/id_by_layer", ".html", ".svg", ".png"),
    shell:
        "touch {output}"
