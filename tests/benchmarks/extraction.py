"""What reading the neighbors of every site costs beside a bare forward pass of the embedded model.

`python -m tests.benchmarks.extraction [--threads N] [--rounds N]` runs SmolLM2-135M on four contexts of 1024 tokens of
the embedded text, with one view, default ladder and statistics, at 30 layers x 3 modules and the final norm, storing
included; loss and entropy are left out on both sides. The two take turns; printed are medians and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from id_scaling.extraction.compute import Extraction, ModelRun
from id_scaling.models.loading import last_hidden
from id_scaling.models.modules import SiteRequest
from id_scaling.neighbors.statistics import DEFAULT_GROUPS
from id_scaling.neighbors.views import View
from id_scaling.sources.model_config import read_architecture
from id_scaling.storage.layer_writer import writing_part
from tests.benchmarks.texts import context, model_folder

N_TOKENS, N_CONTEXTS = 1024, 4


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    input_ids = torch.from_numpy(context(model_folder(), N_TOKENS * N_CONTEXTS).reshape(N_CONTEXTS, N_TOKENS))
    run = load(input_ids, arguments.threads)
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for turn in range(arguments.rounds + 1):
            start = time.perf_counter()
            last_hidden(run.model, input_ids.to(run.device))
            middle = time.perf_counter()
            with (
                threadpool_limits(1, user_api="blas"),
                writing_part(Path(folder) / f"part{turn}", N_CONTEXTS) as writer,
            ):
                scores = run.extract_batch(input_ids, lambda site, arrays: writer.write_site(site, 0, arrays))
                writer.write_tokens(0, scores)
            if turn:  # the first compiles and warms up
                bare.append(middle - start)
                whole.append(time.perf_counter() - middle)
    ratio = np.median(np.array(whole) / np.array(bare))
    print(
        f"{arguments.threads} threads on {run.device}, {len(run.sites)} sites, seconds a context: bare forward pass "
        f"{np.median(bare) / N_CONTEXTS:.2f}, extraction {np.median(whole) / N_CONTEXTS:.2f}; ratio {ratio:.2f}"
    )


def load(input_ids: torch.Tensor, n_threads: int) -> ModelRun:
    """Return the model ready for extraction, with a loss that costs nothing."""
    folder = model_folder()
    request = SiteRequest(layers=None, inblock=("block", "attn", "mlp"), outblock=("unemb",), mapping=None)
    extraction = Extraction(request, {"default": View()}, None, DEFAULT_GROUPS, False, False, "float16", "auto")
    identity = {"path": str(folder), "architecture": asdict(read_architecture(folder)), "is_pickled": False}
    run = ModelRun(extraction, identity, n_threads, False, input_ids)
    nothing = torch.zeros(input_ids.shape)
    run.loss_head = lambda *_: (nothing, nothing)
    return run


if __name__ == "__main__":
    main()
