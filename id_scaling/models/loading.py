"""A causal language model in memory, and forward passes over contexts that hand over the activations of its sites."""

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
# Up to this size `dtype: auto` is float32 on a GPU: 2e9 parameters take 8 GB, which leaves room on a GPU of 16 GB, and
# common models are not close to it (SmolLM2 1.7e9, Qwen 1.8e9; gemma-2b 2.5e9, Pythia 2.8e9). It does not depend on the
# GPU or its free memory, so that a configuration gives the same dtype on every GPU.
MAX_FLOAT32_PARAMETERS = 2_000_000_000

Visit = Callable[[Site, torch.Tensor], None]


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device, n_parameters: int) -> torch.dtype:
    """Return the dtype of the weights; `auto` is bfloat16 for a large model on a GPU, else float32.

    On a CPU half precision is slower. On a GPU `auto` depends only on the size of the model, see
    `MAX_FLOAT32_PARAMETERS`.
    """
    if name != "auto":
        return getattr(torch, name)
    is_small = device.type == "cpu" or n_parameters <= MAX_FLOAT32_PARAMETERS
    return torch.float32 if is_small else torch.bfloat16


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, use_accelerator: bool, is_pickled: bool = False
) -> Any:
    """Load a model for inference onto one device, or with accelerate onto all devices.

    Raises
    ------
    InputError
        The weights are damaged, do not fit the config, or need a package that is not installed; or pickled weights
        hold objects other than tensors.
    ResourceError
        There is too little memory for the model.
    """
    settle_vector_functions()
    transformers_logging.disable_progress_bar()
    placement = {"device_map": "auto"} if use_accelerator else {}
    if is_pickled:
        LOG.warning("%s: loading pickled weights, only tensors", folder)
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
    except Exception as error:  # code of other packages may raise any class
        raise _loading_error(folder, error) from error
    unexpected = report.get("unexpected_keys") or ()
    check_report(folder, model, report, read_tensors(folder, is_pickled, unexpected) if unexpected else {})
    _check_rotary(folder, model)
    _give_plain_outputs(model)
    return model.eval()


def check_report(folder: Path, model: Any, report: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> None:
    """Raise an InputError if the tensors of the weight files do not match the model.

    Tensors that the model lacks are allowed if they are constants that it computes itself.

    Parameters
    ----------
    folder : Path
        Folder of the files.
    model : PreTrainedModel
        The model into which they were loaded.
    report : mapping
        The loading report of transformers.
    stored : mapping of str to Tensor
        At least the unexpected tensors of the files; on the `meta` device only their shapes are compared.
    """
    buffers = dict(model.named_buffers())
    unexpected = [
        name
        for name in report.get("unexpected_keys") or ()
        if (key := key_in_file(name, stored)) is None or not is_constant(name, stored[key], buffers)
    ]
    mismatches = {key: _tensor_list(names) for key, names in {**report, "unexpected_keys": unexpected}.items() if names}
    if mismatches:
        message = "; ".join(f"{key}: {names}" for key, names in mismatches.items())
        raise InputError(
            f"{folder}: the weights are not those of its config.json: {message}; fetch or save the checkpoint again"
        )


def _tensor_list(names: Any) -> str:
    """Return tensor names, with the shapes in the file and in the model if they differ, as one short text."""
    entries = [name if isinstance(name, tuple) else (name,) for name in names]
    descriptions = sorted(
        f"{entry[0]} {list(entry[1])} instead of {list(entry[2])}" if len(entry) == 3 else " ".join(map(str, entry))
        for entry in entries
    )
    return shortened(", ".join(descriptions))


def _loading_error(folder: Path, error: Exception) -> Exception:
    """Return the error for users when a model cannot be loaded."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ResourceError(
            f"{folder}: too little memory for the model ({shortened(str(error))}); use_accelerator: true spreads it "
            "over several GPUs and the host, dtype: bfloat16 halves it"
        )
    if isinstance(error, pickle.UnpicklingError):
        return InputError(
            f"{folder}: its pickled weights are damaged or hold more than tensors, and other objects, which could run "
            "code, are not read; convert them with transformers' save_pretrained on a machine where that is safe"
        )
    return of_a_disk(error) or InputError(
        f"{folder}: transformers cannot load this model ({type(error).__name__}: {shortened(str(error))}); install "
        "the package it names, correct config.json, or fetch or save the model again"
    )


def _check_rotary(folder: Path, model: Any) -> None:
    """Raise an InputError if the config gives rotary frequencies that are not finite."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not buffer.isfinite().all():
            raise InputError(
                f"{folder}: config.json gives rotary frequencies that are not finite ({name}); correct rope_theta and "
                "rope_scaling there, or fetch the model again"
            )


def _give_plain_outputs(model: Any) -> None:
    """Set the configs of a model and its parts so that outputs have names and contain no extra states."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in configs.values():
        for key, value in (("return_dict", True), ("output_hidden_states", False), ("output_attentions", False)):
            if hasattr(config, key):
                setattr(config, key, value)


def decoder_of(model: Any) -> Any:
    """Return the part of a causal language model that computes its last hidden states.

    This is the model's `base_model`. Some classes, such as Llama 4's text model, define none: there it is the only
    child that is itself a model.
    """
    if model.base_model is not model:
        return model.base_model
    children = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return children[0] if len(children) == 1 else model


def n_embedding_parameters(model: Any) -> int:
    """Return the number of parameters of embeddings and of the output embedding; shared ones count once."""
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    embeddings += filter(None, [model.get_output_embeddings()])
    return sum(
        {id(parameter): parameter.numel() for module in embeddings for parameter in module.parameters()}.values()
    )


@contextmanager
def watching(model: Any, sites: Sequence[Site], visit: Visit) -> Iterator[None]:
    """Call `visit(site, activations)` with (contexts, tokens, d) when the forward pass leaves each site."""

    def hook(site: Site) -> Callable:
        def call_visit(_module: torch.nn.Module, _inputs: tuple, output: Any) -> None:
            visit(site, first_of(output))

        return call_visit

    handles = [model.get_submodule(site.path).register_forward_hook(hook(site)) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_of(output: Any) -> Any:
    """Return the hidden states in a module's output, which is a tensor, or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple | list) else output


class LossHead:
    """Loss and entropy of each token from the last hidden states, with the logits of a few tokens in memory at a time.

    The model's own forward pass computes the logits, including a scale or a cap. Its decoder is replaced by a function
    that returns a chunk of the known hidden states, so that tokens x vocabulary values are never in memory. A probe
    of a few tokens shows once whether this gives the model's own logits. If not, the whole forward pass is run again,
    one context at a time.
    """

    def __init__(self, model: Any, probe: torch.Tensor) -> None:
        self._model = model
        self._decoder = self._find_decoder(probe[:1, :PROBE_TOKENS])
        if self._decoder is None:
            LOG.warning("the model computes its logits from more than its last hidden states: it is run twice")

    def __call__(self, input_ids: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss and entropy in nats, (contexts, tokens) float32 on the host.

        Both belong to the prediction of a token from the tokens before it, so those of the first token are NaN.
        """
        losses = torch.full(input_ids.shape, torch.nan)
        entropies = torch.full(input_ids.shape, torch.nan)
        for row, ids in enumerate(input_ids):
            chunks = zip(self._logits(ids, hidden[row]), ids[1:].split(TOKENS_A_CHUNK), strict=True)
            scores = [_score(logits, next_ids) for logits, next_ids in chunks]
            losses[row, 1:] = torch.cat([loss for loss, _ in scores]).cpu()
            entropies[row, 1:] = torch.cat([entropy for _, entropy in scores]).cpu()
        return losses, entropies

    def _logits(self, ids: torch.Tensor, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the logits of all tokens except the last, in chunks, in float32."""
        if self._decoder is None:
            yield from self._model(ids[None], use_cache=False).logits[0, :-1].float().split(TOKENS_A_CHUNK)
            return
        for ids_chunk, hidden_chunk in zip(
            ids[:-1].split(TOKENS_A_CHUNK), hidden[:-1].split(TOKENS_A_CHUNK), strict=True
        ):
            yield self._logits_of(self._decoder, ids_chunk[None], hidden_chunk[None])[0]

    def _logits_of(self, decoder: torch.nn.Module, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of the model's forward pass for given last hidden states, in float32."""
        with _fixed_output(decoder, self._kind(last_hidden_state=hidden)):
            return self._model(ids, use_cache=False).logits.float()

    def _find_decoder(self, probe: torch.Tensor) -> torch.nn.Module | None:
        """Return the module that computes the last hidden states; None if the logits depend on anything else."""
        base_decoder = decoder_of(self._model)
        # A product with fewer rows rounds differently; bfloat16 has 8 bits.
        tolerance = 1e-3 if next(base_decoder.parameters()).dtype in (torch.float32, torch.float64) else 0.1
        for decoder in filter(None, (base_decoder, getattr(base_decoder, "decoder", None))):
            outputs: list[Any] = []
            handle = decoder.register_forward_hook(lambda _module, _inputs, output, seen=outputs: seen.append(output))
            expected = self._model(probe, use_cache=False).logits.float()
            handle.remove()
            if len(outputs) == 1 and isinstance(outputs[0], ModelOutput):
                output: Any = outputs[0]
                self._kind = type(output)
                # In two halves, so that a dependence on a token's place in its chunk is noticed.
                halves = zip(probe.tensor_split(2, 1), output.last_hidden_state.tensor_split(2, 1), strict=True)
                computed = torch.cat([self._logits_of(decoder, *half) for half in halves], dim=1)
                if (expected - computed).abs().max() <= tolerance * expected.std():
                    return decoder
        return None


@contextmanager
def _fixed_output(decoder: torch.nn.Module, output: ModelOutput) -> Iterator[None]:
    """Let a decoder return a fixed output within the block, for any arguments."""
    own_forward = decoder.__dict__.get("forward")  # accelerate sets one on the instance
    decoder.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del decoder.forward
        if own_forward is not None:
            decoder.forward = own_forward


def last_hidden(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states of the model, (contexts, tokens, d), without computing logits.

    Raises
    ------
    InputError
        The model gives no such hidden states.
    """
    output = decoder_of(model)(input_ids, use_cache=False)
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, torch.Tensor) or hidden.shape[:2] != input_ids.shape:
        raise InputError(
            f"a model of class {type(model).__name__} gives no last hidden states of each token, from which the "
            "loss is computed; study another model, or convert it to an architecture of transformers that does"
        )
    return hidden


def _score(logits: torch.Tensor, next_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy with the next tokens, and the entropy of the prediction, in nats."""
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(-1, next_ids.to(logits.device)[:, None])[:, 0]
    return loss, torch.special.entr(log_p.exp()).sum(-1)
