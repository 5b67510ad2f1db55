"""One table per run, module and estimator. They are many and short, so those of a run are computed by one job.

Snakemake deletes the declared outputs of a failed job. So the batch of a run stages each table, where no rule declares
it, as soon as it is finished, and a table's own rule, local and quick, links it. Where the batch left no table of these
settings and this manifest, that rule computes it itself.
"""

TABLE = outputs_of("estimate_dimension")[0]
# Made when a table of its run is stale only, and gone when these are linked.
BATCH = outputs_of("estimate_batch")[0]


rule estimate_batch:
    input:
        # One that a killed Snakemake left is of another plan.
        start=START,
        manifest=MANIFEST,
    output:
        temp(BATCH),
    log:
        log_of("estimate_batch"),
    benchmark:
        benchmark_of("estimate_batch")
    conda:
        "../../environment.yml"
    threads: get_batch_threads
    resources:
        mem_mb=get_batch_memory,
        runtime=get_batch_minutes,
    params:
        settings=get_batch_settings,
        execution=get_batch_execution,
        logs=get_batch_logs,
    shell:
        r"""
        id_scaling estimate-batch \
            --settings {params.settings:q} \
            --execution {params.execution:q} \
            --manifest {input.manifest:q} \
            --logs {params.logs:q} \
            --output {output:q} \
            2>&1 | tee {log:q} | to_terminal
        """


rule estimate_dimension:
    input:
        start=since(TABLE, START),
        manifest=since(TABLE, MANIFEST),
        batch=since(TABLE, BATCH),
    output:
        # Kept until it is replaced, also where the job fails.
        update(TABLE),
    log:
        log_of("estimate_dimension"),
    # Its batch's tables are linked before more is computed.
    priority: 2
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=get_estimate_settings,
        staging=get_staging,
        staged=get_staged,
    shell:
        r"""
        if cmp -s {params.staging:q}/manifest.json {input.manifest:q} &&
            mv -f {params.staged:q}.parquet {output:q} 2>/dev/null
        then
            mv -f {params.staged:q}.log {log:q} || true
        else
            id_scaling estimate \
                --settings {params.settings:q} \
                --manifest {input.manifest:q} \
                --output {output:q} \
                2>&1 | tee {log:q} | to_terminal
        fi
        """
