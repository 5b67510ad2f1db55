"""A causal language model in memory, and one forward pass over contexts with a look at its sites."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from id_scaling.errors import InputError
from id_scaling.logs import LOG
from id_scaling.mkl import settle_vector_functions
from id_scaling.sites import Site

TOKENS_A_CHUNK = 128
PROBE_TOKENS = 32

Visit = Callable[[Site, torch.Tensor], None]


def pick_device() -> torch.device:
    """Return the GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the weights' dtype; `auto` is float32 on a CPU, where half precision is slower, else bfloat16."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, name)


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, use_accelerator: bool, is_pickled: bool = False
) -> Any:
    """Load a model for inference, placed on one device, or by accelerate over all there are.

    Raises
    ------
    InputError
        Tensors of the architecture are missing from the files, are of another shape, or are not of it; or pickled
        weights hold more than tensors.
    """
    settle_vector_functions()
    transformers_logging.disable_progress_bar()
    placement = {"device_map": "auto"} if use_accelerator else {}
    if is_pickled:
        LOG.warning("%s: loading pickled weights, as tensors alone", folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=not is_pickled,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placement,
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{folder}: its pickled weights are damaged or hold more than tensors, which could run code and is not "
            "read; convert them with transformers' save_pretrained where that can do no harm"
        ) from error
    wrong = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if wrong:
        raise InputError(
            f"{folder}: the weights are not those of its config.json: {wrong}; fetch or save the checkpoint again"
        )
    return (model if use_accelerator else model.to(device)).eval()


@contextmanager
def watching(model: Any, sites: Sequence[Site], visit: Visit) -> Iterator[None]:
    """Call `visit(site, activations)` with (contexts, tokens, d) when the forward pass leaves each site."""

    def hook(site: Site) -> Callable:
        def leave(_module: torch.nn.Module, _inputs: tuple, output: Any) -> None:
            visit(site, output[0] if isinstance(output, tuple) else output)

        return leave

    handles = [model.get_submodule(site.path).register_forward_hook(hook(site)) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LossHead:
    """Loss and entropy of each token from the last hidden states, a few tokens' logits at a time.

    The output embedding is applied to chunks of tokens, so that tokens x vocabulary is never held; whether that gives
    the model's own logits is tried on a few tokens once. Where it does not, the model's own forward
    pass gives the logits, one context at a time.
    """

    def __init__(self, model: Any, probe: torch.Tensor) -> None:
        self._model = model
        self._softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._is_plain = self._gives_own_logits(probe[:1, :PROBE_TOKENS])
        if not self._is_plain:
            LOG.warning("the model changes its logits after the output embedding: its own forward pass is used")

    def __call__(self, input_ids: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss and entropy in nats, (contexts, tokens) float32 on the host.

        Both are of the prediction of that token from those before it, so the first is NaN.
        """
        losses = torch.full(input_ids.shape, torch.nan)
        entropies = torch.full(input_ids.shape, torch.nan)
        for row, ids in enumerate(input_ids):
            chunks = zip(self._logits(ids, hidden[row]), ids[1:].split(TOKENS_A_CHUNK), strict=True)
            scores = [_score(logits, following) for logits, following in chunks]
            losses[row, 1:] = torch.cat([loss for loss, _ in scores]).cpu()
            entropies[row, 1:] = torch.cat([entropy for _, entropy in scores]).cpu()
        return losses, entropies

    def _logits(self, ids: torch.Tensor, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the logits of all tokens but the last, in chunks, in float32."""
        if self._is_plain:
            yield from map(self._head, hidden[:-1].split(TOKENS_A_CHUNK))
        else:
            yield from self._model(ids[None], use_cache=False).logits[0, :-1].float().split(TOKENS_A_CHUNK)

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states, in float32."""
        embedding = self._model.get_output_embeddings()
        logits = embedding(hidden.to(embedding.weight.device)).float()
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def _gives_own_logits(self, probe: torch.Tensor) -> bool:
        """Return whether chunked logits are the model's own, to a thousandth of their spread."""
        if self._model.get_output_embeddings() is None:
            return False
        own = self._model(probe, use_cache=False).logits.float()
        ours = self._head(last_hidden(self._model, probe))
        return bool((own - ours.to(own.device)).abs().max() <= 1e-3 * own.std())


def last_hidden(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Run the model without its output embedding: (contexts, tokens, d)."""
    return model.base_model(input_ids, use_cache=False).last_hidden_state


def _score(logits: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cross-entropy with the tokens that follow, and entropy of the prediction, in nats."""
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(-1, following.to(logits.device)[:, None])[:, 0]
    return loss, torch.special.entr(log_p.exp()).sum(-1)
