"""A causal language model in memory, and one forward pass over contexts with a look at its sites."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import ModelOutput
from transformers.utils import logging as transformers_logging

from id_scaling.errors import InputError
from id_scaling.models.mkl_workaround import settle_vector_functions
from id_scaling.models.modules import Site
from id_scaling.runtime.logging import LOG

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


def n_embedding_parameters(model: Any) -> int:
    """Return how many parameters embed tokens and positions or map to the vocabulary, shared ones once."""
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    embeddings += filter(None, [model.get_output_embeddings()])
    return sum({id(one): one.numel() for module in embeddings for one in module.parameters()}.values())


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

    The model's own forward pass makes the logits, whatever it does to them (a scale, a cap): its decoder is replaced
    by one that returns a chunk of hidden states that are there already, so that tokens x vocabulary is never held.
    Whether that gives the model's own logits is tried on a few tokens once. Where it does not, the whole
    forward pass is run again, one context at a time.
    """

    def __init__(self, model: Any, probe: torch.Tensor) -> None:
        self._model = model
        self._decoder = self._find_decoder(probe[:1, :PROBE_TOKENS])
        if self._decoder is None:
            LOG.warning("the model makes its logits of more than its last hidden states: it is run twice")

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
        if self._decoder is None:
            yield from self._model(ids[None], use_cache=False).logits[0, :-1].float().split(TOKENS_A_CHUNK)
            return
        for part, of_part in zip(ids[:-1].split(TOKENS_A_CHUNK), hidden[:-1].split(TOKENS_A_CHUNK), strict=True):
            yield self._logits_of(self._decoder, part[None], of_part[None])[0]

    def _logits_of(self, decoder: torch.nn.Module, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the model's forward pass makes of these last hidden states of its decoder, in float32."""
        with _returning(decoder, self._kind(last_hidden_state=hidden)):
            return self._model(ids, use_cache=False).logits.float()

    def _find_decoder(self, probe: torch.Tensor) -> torch.nn.Module | None:
        """Return the module that the forward pass calls for its hidden states, if it makes its logits of them alone."""
        base = self._model.base_model
        # Rounding of a product whose rows are fewer: a bfloat16 has 8 bits.
        allowed = 1e-3 if next(base.parameters()).dtype in (torch.float32, torch.float64) else 0.1
        for decoder in filter(None, (base, getattr(base, "decoder", None))):
            outputs: list[Any] = []
            handle = decoder.register_forward_hook(lambda _module, _inputs, output, seen=outputs: seen.append(output))
            own = self._model(probe, use_cache=False).logits.float()
            handle.remove()
            if len(outputs) == 1 and isinstance(outputs[0], ModelOutput):
                self._kind = type(outputs[0])
                # In two parts, so that what depends on a token's place in its chunk is noticed.
                parts = zip(probe.tensor_split(2, 1), outputs[0].last_hidden_state.tensor_split(2, 1), strict=True)
                ours = torch.cat([self._logits_of(decoder, *part) for part in parts], dim=1)
                if (own - ours).abs().max() <= allowed * own.std():
                    return decoder
        return None


@contextmanager
def _returning(decoder: torch.nn.Module, output: ModelOutput) -> Iterator[None]:
    """Let a decoder return an output, whatever it is called with."""
    before = decoder.__dict__.get("forward")  # accelerate puts its own there
    decoder.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del decoder.forward
        if before is not None:
            decoder.forward = before


def last_hidden(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Run the model without its output embedding: (contexts, tokens, d)."""
    return model.base_model(input_ids, use_cache=False).last_hidden_state


def _score(logits: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cross-entropy with the tokens that follow, and entropy of the prediction, in nats."""
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(-1, following.to(logits.device)[:, None])[:, 0]
    return loss, torch.special.entr(log_p.exp()).sum(-1)
