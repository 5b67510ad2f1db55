"""One table of the whole session, and its figures."""

SUMMARY, SUMMARY_CSV, SUMMARY_TEXT = outputs_of("summarize")
FIGURES = outputs_of("plot")[0]


rule summarize:
    input:
        start=since(SUMMARY, START),
        manifests=since(SUMMARY, STUDY.manifests()),
        tables=since(SUMMARY, STUDY.tables()),
    output:
        # Kept until all are replaced, also where the job fails.
        parquet=update(SUMMARY),
        csv=report(
            update(ensure(SUMMARY_CSV, non_empty=True)),
            caption="../report/summary.rst",
            category="Summary",
        ),
        text=update(SUMMARY_TEXT),
    log:
        log_of("summarize"),
    benchmark:
        benchmark_of("summarize")
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(2000),
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
            2>&1 | tee {log:q} | to_terminal
        """


rule plot:
    input:
        start=since(FIGURES, START),
        summary=since(FIGURES, SUMMARY),
    output:
        files=update(STUDY.figures("html", "svg")),
        figures=report(
            update(STUDY.figures("png")),
            caption="../report/figure.rst",
            category="Figures",
        ),
        report=report(
            update(STUDY.report()),
            caption="../report/report.rst",
            category="Report",
        ),
        manifest=update(FIGURES),
    log:
        log_of("plot"),
    benchmark:
        benchmark_of("plot")
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
            --session "$(dirname {input.summary:q})" \
            --output {output.files:q} {output.figures:q} {output.report:q} \
            --record {output.manifest:q} \
            2>&1 | tee {log:q} | to_terminal
        """
