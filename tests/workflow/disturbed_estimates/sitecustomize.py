"""On PYTHONPATH, disturbs the estimates of every process and writes down when each was at work.

ESTIMATE_SECONDS: how long each sleeps first. ESTIMATE_DISTURBED: `module/estimator` that does not end well as long as
the file ESTIMATE_MENDED is not there, and ESTIMATE_HOW: `fails`, `dies` or `hangs`. ESTIMATE_TRACE: a file that gets a
line of each that ended well: the table, its start and its end.
"""

import functools
import importlib.util
import os
import signal
import sys
import time

MODULE = "id_scaling.results.estimates"


def end_badly(name):
    """Fail, die or hang, as the environment says."""
    how = os.environ["ESTIMATE_HOW"]
    if how == "fails":
        raise RuntimeError(f"{name} fails for a test")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def disturbed(estimate_run):
    """Return `estimate_run` as the environment disturbs it."""

    @functools.wraps(estimate_run)
    def run(manifest_path, module, estimator, settings, *arguments):
        name, start = f"{module}/{settings['estimator']}", time.time()
        time.sleep(float(os.environ.get("ESTIMATE_SECONDS", "0")))
        if name == os.environ.get("ESTIMATE_DISTURBED") and not os.path.exists(os.environ["ESTIMATE_MENDED"]):
            end_badly(name)
        estimate_run(manifest_path, module, estimator, settings, *arguments)
        with open(os.environ["ESTIMATE_TRACE"], "a") as trace:
            trace.write(f"{name} {start} {time.time()}\n")

    return run


class Finder:
    """Finds the module once, and has what loads it disturb it."""

    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.estimate_run = disturbed(module.estimate_run)

        spec.loader.exec_module = exec_module
        return spec


if "ESTIMATE_TRACE" in os.environ:
    sys.meta_path.insert(0, Finder())
