"""One table of the whole session, and its figures."""


rule summarize:
    input:
        manifests=STUDY.manifests(),
        tables=STUDY.tables(),
    output:
        parquet="<session>/summary.parquet",
        csv=report(
            ensure("<session>/summary.csv", non_empty=True),
            caption="../report/summary.rst",
            category="Summary",
        ),
        text="<session>/summary.txt",
    log:
        "<session>/logs/summarize.log",
    benchmark:
        "<session>/benchmarks/summarize.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        settings=get_summarize_settings,
    shell:
        r"""
        id_scaling summarize \
            --settings {params.settings:q} \
            --session "$(dirname {output.parquet:q})" \
            --parquet {output.parquet:q} \
            --csv {output.csv:q} \
            --text {output.text:q} \
            2>&1 | tee {log:q}
        """


rule plot:
    input:
        "<session>/summary.parquet",
    output:
        files=STUDY.figures("html", "svg"),
        figures=report(
            STUDY.figures("png"),
            caption="../report/figure.rst",
            category="Figures",
        ),
        report=report(
            STUDY.report(),
            caption="../report/report.rst",
            category="Report",
        ),
        manifest="<session>/figures/manifest.json",
    log:
        "<session>/logs/plot.log",
    benchmark:
        "<session>/benchmarks/plot.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        settings=get_plot_settings,
    shell:
        r"""
        id_scaling plot \
            --settings {params.settings:q} \
            --session "$(dirname {input:q})" \
            --output {output.files:q} {output.figures:q} {output.report:q} \
            --record {output.manifest:q} \
            2>&1 | tee {log:q}
        """
