"""One table per run, module and estimator; the tables of a run are one submission on a cluster."""


rule estimate_dimension:
    input:
        manifest="<session>/runs/{model}/{checkpoint}/{dataset}/{subset}/{control}/manifest.json",
    output:
        "<session>/runs/{model}/{checkpoint}/{dataset}/{subset}/{control}/ids/{module}/{estimator}.parquet",
    log:
        "<session>/logs/estimate_dimension/{model}/{checkpoint}/{dataset}/{subset}/{control}/{module}/{estimator}.log",
    benchmark:
        "<session>/benchmarks/estimate_dimension/{model}/{checkpoint}/{dataset}/{subset}/{control}/{module}/{estimator}.tsv"
    group:
        "estimate_{model}_{checkpoint}_{dataset}_{subset}_{control}"
    conda:
        "../../environment.yml"
    threads: STUDY.estimate_threads()
    resources:
        mem_mb=get_estimate_memory,
        runtime=get_estimate_runtime,
    params:
        settings=get_estimate_settings,
        python=get_python,
        verbosity=get_verbosity,
    shell:
        r"""
        {params.python:q} -m id_scaling estimate \
            {params.verbosity} \
            --settings {params.settings:q} \
            --threads {threads} \
            --manifest {input.manifest:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
