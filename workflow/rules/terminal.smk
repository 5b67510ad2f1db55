"""What a run on this machine says in a terminal: how many jobs are done, and what each job says itself.

Snakemake's own log has a block for each job that begins, and so does a dry run, which lists them.
"""

import logging
import time

from snakemake.logging import ColorizingTextHandler, get_event, logger
from snakemake_interface_logger_plugins.common import LogEvent

# The last program of each job's pipe. The first line of a log has all settings, and what was written or drawn may be a
# long list: of these lines a terminal gets the beginning, and word of progress every ten seconds. Errors come whole.
TO_TERMINAL = (
    "to_terminal() { "
    'local last=-10 clock="[0-9][0-9]:[0-9][0-9]:[0-9][0-9] " line; '
    "while IFS= read -r line; do case $line in "
    """$clock*" --"*=* | $clock"wrote "* | $clock"drew "*) printf '%.160s\\n' "$line" ;; """
    """$clock*" left" | $clock*" finished") if (( SECONDS >= last + 10 )); then """
    """last=$SECONDS; printf '%s\\n' "$line"; fi ;; """
    """*) printf '%s\\n' "$line" ;; """
    "esac; done; }"
)


class Brief(logging.Filter):
    """Leaves out that a job is selected, begins or ends; says how many are done every few seconds, and at the end."""

    LEFT_OUT = (LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED)
    SECONDS_BETWEEN = 5

    def __init__(self):
        super().__init__()
        self.last = -self.SECONDS_BETWEEN

    def filter(self, record):
        event, now = get_event(record), time.monotonic()
        if event == LogEvent.PROGRESS:
            is_due = (
                now >= self.last + self.SECONDS_BETWEEN or record.done == record.total
            )
            self.last = now if is_due else self.last
            return is_due
        return (
            event not in self.LEFT_OUT
            and record.getMessage() != "Select jobs to execute..."
        )


def be_brief():
    if workflow.local_exec and not STUDY.config.verbose:
        for handler in logger.handlers:
            if isinstance(handler, ColorizingTextHandler):
                handler.addFilter(Brief())
