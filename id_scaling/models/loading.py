"""A causal language model in memory, and one forward pass over contexts with a look at its sites."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils import logging as transformers_logging

from id_scaling.errors import InputError, ResourceError, of_a_disk, shortened
from id_scaling.models.constants import is_constant, key_in_file, read_tensors
from id_scaling.models.mkl_workaround import settle_vector_functions
from id_scaling.models.modules import Site
from id_scaling.runtime.logging import LOG

TOKENS_A_CHUNK = 128
PROBE_TOKENS = 32
# Up to here `dtype: auto` is float32 on a GPU: 2e9 parameters are 8 GB, which leaves room on a GPU of 16 GB, and no
# common family has a size near it (SmolLM2 1.7e9, Qwen 1.8e9; gemma-2b 2.5e9, Pythia 2.8e9). It does not depend on the
# GPU or its free memory, so that one configuration gives one dtype on every GPU.
MAX_FLOAT32_PARAMETERS = 2_000_000_000

Visit = Callable[[Site, torch.Tensor], None]


def pick_device() -> torch.device:
    """Return the GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device, n_parameters: int) -> torch.dtype:
    """Return the weights' dtype; `auto` is bfloat16 for a large model on a GPU, else float32.

    On a CPU half precision is slower. On a GPU it is the model's size alone that decides, see
    `MAX_FLOAT32_PARAMETERS`.
    """
    if name != "auto":
        return getattr(torch, name)
    is_small = device.type == "cpu" or n_parameters <= MAX_FLOAT32_PARAMETERS
    return torch.float32 if is_small else torch.bfloat16


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, use_accelerator: bool, is_pickled: bool = False
) -> Any:
    """Load a model for inference, placed on one device, or by accelerate over all there are.

    Raises
    ------
    InputError
        The weights are damaged, are not those of the config, or need a package that is not installed; or pickled
        weights hold more than tensors.
    ResourceError
        There is too little memory for the model.
    """
    settle_vector_functions()
    transformers_logging.disable_progress_bar()
    placement = {"device_map": "auto"} if use_accelerator else {}
    if is_pickled:
        LOG.warning("%s: loading pickled weights, as tensors alone", folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=not is_pickled,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **placement,
        )
        model, report = loaded
        model = model if use_accelerator else model.to(device)
    except Exception as error:  # other packages' code may raise anything: it becomes words
        raise _loading_error(folder, error) from error
    unexpected = report.get("unexpected_keys") or ()
    check_report(folder, model, report, read_tensors(folder, is_pickled, unexpected) if unexpected else {})
    _check_rotary(folder, model)
    _give_plain_outputs(model)
    return model.eval()


def check_report(folder: Path, model: Any, report: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> None:
    """Raise an InputError where the tensors of some files are not those of a model.

    Tensors that the model does not have are no mismatch where they are constants that it computes itself.

    Parameters
    ----------
    folder : Path
        Where the files are.
    model : PreTrainedModel
        The model that they were loaded into.
    report : mapping
        What transformers says of the loading.
    stored : mapping of str to Tensor
        Tensors of the files, those that were unexpected at least; on the `meta` device they are judged by their shapes.
    """
    buffers = dict(model.named_buffers())
    unexpected = [
        name
        for name in report.get("unexpected_keys") or ()
        if (key := key_in_file(name, stored)) is None or not is_constant(name, stored[key], buffers)
    ]
    wrong = {key: _listed(names) for key, names in {**report, "unexpected_keys": unexpected}.items() if names}
    if wrong:
        said = "; ".join(f"{key}: {names}" for key, names in wrong.items())
        raise InputError(
            f"{folder}: the weights are not those of its config.json: {said}; fetch or save the checkpoint again"
        )


def _listed(names: Any) -> str:
    """Return the names, or names with the shapes in the file and in the model, of tensors, in one short text."""
    pairs = [name if isinstance(name, tuple) else (name,) for name in names]
    listed = sorted(
        f"{pair[0]} {list(pair[1])} instead of {list(pair[2])}" if len(pair) == 3 else " ".join(map(str, pair))
        for pair in pairs
    )
    return shortened(", ".join(listed))


def _loading_error(folder: Path, error: Exception) -> Exception:
    """Return what to say of a model that could not be loaded."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ResourceError(
            f"{folder}: too little memory for the model ({shortened(str(error))}); use_accelerator: true spreads it "
            "over several GPUs and the host, dtype: bfloat16 halves it"
        )
    if isinstance(error, pickle.UnpicklingError):
        return InputError(
            f"{folder}: its pickled weights are damaged or hold more than tensors, which could run code and is not "
            "read; convert them with transformers' save_pretrained where that can do no harm"
        )
    return of_a_disk(error) or InputError(
        f"{folder}: transformers cannot load this model ({type(error).__name__}: {shortened(str(error))}); install "
        "the package it names, correct config.json, or fetch or save the model again"
    )


def _check_rotary(folder: Path, model: Any) -> None:
    """Raise an InputError where the rotary frequencies that a config makes are not numbers."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not buffer.isfinite().all():
            raise InputError(
                f"{folder}: config.json makes rotary frequencies that are not finite ({name}); correct rope_theta and "
                "rope_scaling there, or fetch the model again"
            )


def _give_plain_outputs(model: Any) -> None:
    """Have a model and its parts return their hidden states by name, and nothing more, whatever its config asks for."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in configs.values():
        for key, value in (("return_dict", True), ("output_hidden_states", False), ("output_attentions", False)):
            if hasattr(config, key):
                setattr(config, key, value)


def decoder_of(model: Any) -> Any:
    """Return the part of a causal language model that makes its last hidden states.

    It is the model's `base_model`. Some classes name no such part, as that of Llama 4's text model: there it is the
    one child that is itself a model.
    """
    if model.base_model is not model:
        return model.base_model
    children = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return children[0] if len(children) == 1 else model


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
            visit(site, first_of(output))

        return leave

    handles = [model.get_submodule(site.path).register_forward_hook(hook(site)) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_of(output: Any) -> Any:
    """Return the hidden states of what a module returns: most return them alone, others first of several things."""
    return output[0] if isinstance(output, tuple | list) else output


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
        base = decoder_of(self._model)
        # Rounding of a product whose rows are fewer: a bfloat16 has 8 bits.
        allowed = 1e-3 if next(base.parameters()).dtype in (torch.float32, torch.float64) else 0.1
        for decoder in filter(None, (base, getattr(base, "decoder", None))):
            outputs: list[Any] = []
            handle = decoder.register_forward_hook(lambda _module, _inputs, output, seen=outputs: seen.append(output))
            own = self._model(probe, use_cache=False).logits.float()
            handle.remove()
            if len(outputs) == 1 and isinstance(outputs[0], ModelOutput):
                output: Any = outputs[0]
                self._kind = type(output)
                # In two parts, so that what depends on a token's place in its chunk is noticed.
                parts = zip(probe.tensor_split(2, 1), output.last_hidden_state.tensor_split(2, 1), strict=True)
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
    """Run the model without its output embedding: (contexts, tokens, d).

    Raises
    ------
    InputError
        It gives no such hidden states.
    """
    output = decoder_of(model)(input_ids, use_cache=False)
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, torch.Tensor) or hidden.shape[:2] != input_ids.shape:
        raise InputError(
            f"a model of class {type(model).__name__} gives no last hidden states of each token, which the loss is "
            "made of; study another model, or convert it to an architecture of transformers that does"
        )
    return hidden


def _score(logits: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cross-entropy with the tokens that follow, and entropy of the prediction, in nats."""
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(-1, following.to(logits.device)[:, None])[:, 0]
    return loss, torch.special.entr(log_p.exp()).sum(-1)
