# The same jobs as a study's, by file name alone: what they cost the engine without anything of ours.
MODELS = [model["model_name"].replace("/", "--") for model in config["model_config"]]
RUNS = [
    f"{model}/{checkpoint}/{config['dataset_config']['dataset_name']}/{subset}/{config['ctx_len']}/none"
    for model, entry in zip(MODELS, config["model_config"])
    for checkpoint in entry["model_checkpoint"]
    for subset in config["dataset_config"]["dataset_subset"]
]
CACHEING = config["cacheing_config"]
MODULES = CACHEING["module_inblock_keys"] + CACHEING["module_outblock_keys"]
MANIFESTS = [f"results/runs/{run}/manifest.json" for run in RUNS]
TABLES = [
    f"results/runs/{run}/ids/{module}/{estimator}.parquet"
    for run in RUNS
    for module in MODULES
    for estimator in CACHEING["save_IDs_list"]
]


rule all:
    input:
        MANIFESTS,
        TABLES,
        multiext("results/summary", ".parquet", ".csv", ".txt"),
        multiext("results/figures/id_by_layer", ".html", ".svg", ".png"),


rule fetch_model:
    output:
        "results/models/{model}/{checkpoint}/identity.json",
    shell:
        "touch {output}"


rule fetch_weights:
    input:
        "results/models/{model}/{checkpoint}/identity.json",
        "results/contexts/{dataset}/{subset}/{model}/{ctx_len}/{control}/contexts.parquet",
    output:
        directory("results/weights/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}"),
    shell:
        "mkdir -p {output}"


rule fetch_tokenizer:
    output:
        "results/tokenizers/{tokenizer}/identity.json",
    shell:
        "touch {output}"


rule fetch_dataset:
    output:
        "results/datasets/{dataset}/{subset}/identity.json",
    shell:
        "touch {output}"


rule chunk_dataset:
    input:
        "results/datasets/{dataset}/{subset}/identity.json",
        "results/tokenizers/{tokenizer}/identity.json",
    output:
        "results/contexts/{dataset}/{subset}/{tokenizer}/{ctx_len}/{control}/contexts.parquet",
    shell:
        "touch {output}"


rule extract_activations:
    input:
        "results/contexts/{dataset}/{subset}/{model}/{ctx_len}/{control}/contexts.parquet",
        "results/models/{model}/{checkpoint}/identity.json",
        "results/weights/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}",
    output:
        "results/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/manifest.json",
        "results/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/tokens.parquet",
    shell:
        "touch {output}"


rule estimate_batch:
    input:
        "results/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/manifest.json",
    output:
        temp("results/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/staged/done"),
    shell:
        "touch {output}"


rule estimate_dimension:
    input:
        "results/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/manifest.json",
        "results/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/staged/done",
    output:
        "results/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/ids/{module}/{estimator}.parquet",
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
