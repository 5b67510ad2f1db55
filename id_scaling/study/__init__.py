"""From one YAML file to jobs and what makes each of them stale; never imported by a stage of the pipeline."""
