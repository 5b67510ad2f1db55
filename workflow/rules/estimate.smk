"""One table per run, module and estimator. They are many and short: a cluster's profile groups those of a run."""

TABLE = "<session>/runs/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/ids/{module}/{estimator}.parquet"


rule estimate_dimension:
    input:
        start=since(TABLE, START),
        manifest=since(TABLE, MANIFEST),
    output:
        # Kept until it is replaced, also where the job fails.
        update(TABLE),
    log:
        "<session>/logs/estimate_dimension/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}/{module}/{estimator}.log",
    conda:
        "../../environment.yml"
    threads: STUDY.estimate_threads()
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        settings=get_estimate_settings,
    shell:
        r"""
        id_scaling estimate \
            --settings {params.settings:q} \
            --threads {threads} \
            --manifest {input.manifest:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
