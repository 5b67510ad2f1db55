"""How far half precision moves IDs: the same contexts, with weights in float32 and in another dtype.

`python -m tests.simulations.half_precision MODEL TEXT [--dtype bfloat16] [--contexts 4] [--tokens 1024]
[--layers 0 10 20 29]` runs a folder with a model of the architecture `llama` on the first tokens of a text file, on a
CPU, and takes the outputs of its blocks in float64, without the first token. It prints for each layer the relative
difference of estimates, mean and worst of the contexts, and the share of points whose nearest neighbor is another.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from id_scaling.estimators.arrays import estimate_batch
from id_scaling.models.loading import last_hidden, load_model, watching
from id_scaling.models.modules import Site, SiteRequest, resolve_sites
from id_scaling.text.tokenization import load_tokenizer

ESTIMATORS = ("twoNN_f10", "mle", "mle_harmonic", "mind_ml", "gride_n4")
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def main() -> None:
    """Print a table of differences by layer and estimator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 10, 20, 29])
    given = parser.parse_args()
    ids = load_tokenizer(given.model)(given.text.read_text(), add_special_tokens=False, verbose=False)["input_ids"]
    contexts = torch.tensor(ids[: given.contexts * given.tokens]).reshape(given.contexts, given.tokens)
    exact, other = (blocks(given.model, DTYPES[name], contexts, given.layers) for name in ("float32", given.dtype))
    print(f"layer  estimator        mean %   worst %    ({given.dtype}; then the share of other nearest neighbors)")
    for layer in given.layers:
        report(layer, exact[layer], other[layer])


def blocks(folder: Path, dtype: torch.dtype, contexts: torch.Tensor, layers: Sequence[int]) -> Mapping[int, np.ndarray]:
    """Return the outputs of blocks without the first token, (contexts, tokens - 1, d) in float64."""
    model = load_model(folder, dtype, torch.device("cpu"), use_accelerator=False)
    sites = resolve_sites(SiteRequest(tuple(layers), ("block",), (), None), "llama", model.config.num_hidden_layers)
    seen: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}

    def keep(site: Site, activations: torch.Tensor) -> None:
        seen[site.layer].append(activations.double().numpy())

    with torch.inference_mode(), watching(model, sites, keep):
        for context in contexts:
            last_hidden(model, context[None])
    return {layer: np.concatenate(clouds)[:, 1:] for layer, clouds in seen.items()}


def report(layer: int, exact: np.ndarray, other: np.ndarray) -> None:
    """Print what changes at one layer."""
    for name in ESTIMATORS:
        ours, theirs = (estimate_batch(clouds, [name])["value"].to_numpy() for clouds in (other, exact))
        change = 100 * (ours / theirs - 1)
        print(f"{layer:5}  {name:13} {change.mean():9.2f} {np.abs(change).max():9.2f}")
    changed = np.mean([nearest(one) != nearest(two) for one, two in zip(exact, other, strict=True)])
    print(f"{layer:5}  other nearest neighbors {100 * changed:.1f} %", flush=True)


def nearest(cloud: np.ndarray) -> np.ndarray:
    """Return the index of each point's nearest neighbor, from differences in float64."""
    points = torch.from_numpy(cloud)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    return distances.argmin(dim=1).numpy()


if __name__ == "__main__":
    main()
