"""Whether a configuration file is one, by one message that names the line."""

from pathlib import Path

from snakemake.exceptions import WorkflowError

from id_scaling.errors import IdScalingError
from id_scaling.runtime.logging import plain
from id_scaling.study.config_file import read_config


def check_file(path):
    try:
        if Path(path).exists():  # or else Snakemake says so
            read_config(Path(path))
    except IdScalingError as error:
        raise WorkflowError(plain(str(error))) from None
