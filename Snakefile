# The workflow is in workflow/Snakefile. Snakemake takes no default target from an included file, so it is named here.
include: "workflow/Snakefile"


workflow.default_target = "all"
