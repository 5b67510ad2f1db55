from snakemake.utils import min_version

min_version("9.19")


include: "workflow/rules/config_file.smk"


# A configuration named on the command line stands alone; it is never merged into the embedded default.
if not workflow.overwrite_configfiles:
    # Before Snakemake parses it, which has no words for values too deep or numbers too long.
    check_file("config/config.yaml")

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/staleness.smk"


pathvars:
    session=STUDY.session,


include: "workflow/rules/train.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/chunk.smk"
include: "workflow/rules/extract.smk"
include: "workflow/rules/estimate.smk"
include: "workflow/rules/summarize.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        STUDY.targets(),


rule extract_all:
    input:
        STUDY.manifests(),


rule estimate_all:
    input:
        STUDY.tables(),


onstart:
    hold_session()
    plan_batches()


onsuccess:
    end_batches()
    release_session()
    print_summary()
    print_newly_stale()


onerror:
    end_batches()
    release_session()
