"""One run: a forward pass over its contexts. Layer files stand beside the manifest, which names them.

They are not declared outputs: which there are is known only with the model, and Snakemake would delete
them with a failed job. The extraction goes on from the parts that a killed one left.
"""

MANIFEST, TOKENS = outputs_of("extract_activations")


rule extract_activations:
    input:
        start=since(MANIFEST, START),
        contexts=since(MANIFEST, get_contexts),
        model=since(MANIFEST, IDENTITY),
        weights=since(MANIFEST, get_weights),
        sources=since(MANIFEST, get_model_sources),
    output:
        manifest=MANIFEST,
        tokens=TOKENS,
    log:
        log_of("extract_activations"),
    benchmark:
        benchmark_of("extract_activations")
    # Before more weights are brought: those of what is extracted go.
    priority: 1
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        gpu=1,
        mem_mb=growing(16000),
        runtime=growing(EXTRACT_MINUTES),
    params:
        settings=get_extract_settings,
        execution=get_extract_execution,
    shell:
        r"""
        id_scaling extract \
            --settings {params.settings:q} \
            --execution {params.execution:q} \
            --threads {threads} \
            --contexts {input.contexts:q} \
            --model {input.model:q} \
            --weights {input.weights:q} \
            --output {output.manifest:q} \
            2>&1 | tee {log:q} | to_terminal
        """
