"""Checks that modules mean what their keys say, on the first tokens of a run before anything is stored.

`block` is the residual stream after a block, and `attn` and `mlp` are the terms that each branch adds to it, so that

    block input + attn + mlp = block output,

and the outputs of blocks are the model's own hidden states. Other keys are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch

from id_scaling.errors import InputError
from id_scaling.models.loading import decoder_of, first_of
from id_scaling.models.modules import ENTRIES, Site

CHECKED_KEYS = ("block", "attn", "mlp")
BRANCHES = ("attn", "mlp")
TOKENS_CHECKED = 128
# Relative to the largest norm of a token's parts: two additions round by 1e-7 in float32, by 1e-3 to 1e-2 in half
# precision.
MAX_ERROR, MAX_ERROR_IN_HALF = 1e-4, 2e-2

Finding = dict[str, Any]


def check_meaning(
    model: Any, sites: Sequence[Site], mapping: Mapping[str, str], model_type: str, input_ids: torch.Tensor
) -> dict[str, Finding]:
    """Return a finding for each module key: the largest error of the check, or why the key was not checked.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    sites : sequence of Site
        Where activations are read.
    mapping : mapping of str to str
        Module key -> path, for all known keys.
    model_type : str
        Architecture of the model.
    input_ids : Tensor of shape (contexts, tokens)
        Contexts; the check runs the first `TOKENS_CHECKED` tokens of the first context.

    Returns
    -------
    dict
        Module key -> finding. Its `verdict` is `checked` or `unchecked`. A checked key has `worst` (the largest error
        of a token, relative to the norm of its largest part), `layer` (where it occurs) and `allowed`; an unchecked
        key has a `reason`.

    Raises
    ------
    InputError
        A key does not mean what it says.
    """
    findings = {site.module: _unchecked_finding("its name is none of block, attn and mlp") for site in sites}
    checked_keys = [key for key in findings if key in CHECKED_KEYS]
    if not checked_keys:
        return findings
    layers = sorted(cast("set[int]", {site.layer for site in sites if site.module in CHECKED_KEYS}))
    # Only both branches together add up to a block; if no branch is read, their paths in the mapping are not checked.
    keys = CHECKED_KEYS if any(key in BRANCHES for key in checked_keys) else ("block",)
    with _recording(model, layers, keys, mapping, model_type) as recorded, torch.inference_mode():
        output = decoder_of(model)(input_ids[:1, :TOKENS_CHECKED], use_cache=False, output_hidden_states=True)
    is_half_precision = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    max_error = MAX_ERROR_IN_HALF if is_half_precision else MAX_ERROR
    if "block" in checked_keys:
        findings["block"] = _check_blocks(recorded, layers, output.hidden_states, max_error, mapping)
    if keys == CHECKED_KEYS:
        branch_finding = _check_branches(recorded, layers, max_error, mapping)
        findings |= {key: branch_finding for key in checked_keys if key in BRANCHES}
    return findings


def _unchecked_finding(reason: str) -> Finding:
    return {"verdict": "unchecked", "reason": reason}


def _checked_finding(errors: Mapping[int, float], max_error: float) -> Finding:
    """Return the finding of a key from its error in each layer."""
    errors = {layer: value for layer, value in errors.items() if not math.isnan(value)}
    if not errors:
        return _unchecked_finding("no token of the outputs is finite")
    layer = max(errors, key=errors.__getitem__)
    return {"verdict": "checked", "worst": errors[layer], "layer": layer, "allowed": max_error}


Recorded = dict[tuple[str, int | None], torch.Tensor]


@contextmanager
def _recording(
    model: Any, layers: Sequence[int], keys: Sequence[str], mapping: Mapping[str, str], model_type: str
) -> Iterator[Recorded]:
    """Yield a record of forward passes: outputs of modules, and as `input` those of each block and of `unemb`."""
    recorded: Recorded = {}

    def record_output(key: str, layer: int | None) -> Callable:
        # `_tokens` copies at once: some architectures later add to a module's output in place.
        return lambda _module, _inputs, output: recorded.update({(key, layer): _tokens(output)})

    def record_input(layer: int | None) -> Callable:
        return lambda _module, inputs, keywords: recorded.update(
            {("input", layer): _tokens(_first_input(inputs, keywords))}
        )

    modules = dict(model.named_modules())
    with ExitStack() as stack:

        def hook(template: str | None, layer: int | None, kind: str, function: Callable, **options: bool) -> None:
            module = modules.get((template or "{layer}").replace("{layer}", str(layer)))
            if module is not None:
                stack.callback(getattr(module, kind)(function, **options).remove)

        for layer in layers:
            for key in keys:
                hook(mapping.get(key), layer, "register_forward_hook", record_output(key, layer))
            hook(mapping.get("block"), layer, "register_forward_pre_hook", record_input(layer), with_kwargs=True)
            hook(ENTRIES.get(model_type), layer, "register_forward_hook", record_output("input", layer))
        hook(mapping.get("unemb"), None, "register_forward_pre_hook", record_input(None), with_kwargs=True)
        yield recorded


def _first_input(inputs: tuple, keywords: Mapping[str, Any]) -> Any:
    """Return the first argument of a module's call, whether positional or a keyword."""
    return inputs[0] if inputs else keywords.get("hidden_states")


def _tokens(values: Any) -> torch.Tensor:
    """Return activations as (tokens, d) in float32 on the host."""
    values = first_of(values).detach().float().cpu()
    return values.reshape(-1, values.shape[-1]).clone()


def _relative_error(actual: torch.Tensor, expected: torch.Tensor, parts: Iterable[torch.Tensor] = ()) -> float:
    """Return the largest ‖actual - expected‖ over tokens, relative to the largest norm of the token's parts.

    Only tokens with a finite `expected` count: NaN if there is none. Infinity for another shape, or if `actual` is not
    finite.
    """
    if actual.shape != expected.shape:
        return float("inf")
    is_finite = expected.isfinite().all(dim=-1)
    norms = torch.stack([part.norm(dim=-1) for part in (expected, *parts)]).amax(dim=0)[is_finite]
    differences = (actual - expected).norm(dim=-1)[is_finite]
    errors = differences / norms.clamp_min(torch.finfo(torch.float32).tiny)
    return float(errors.nan_to_num(nan=torch.inf).max()) if len(errors) else math.nan


def _check_blocks(
    recorded: Recorded,
    layers: Sequence[int],
    hidden_states: Sequence[torch.Tensor] | None,
    max_error: float,
    mapping: Mapping[str, str],
) -> Finding:
    """Compare the outputs of blocks with the model's hidden states, and the last output with the input of `unemb`."""
    if hidden_states is None:
        return _unchecked_finding("the model gives no hidden states")
    states: list[Any] = [_tokens(state) for state in hidden_states]
    # Most models list the input of block 0 first; some, such as Mamba and RWKV, do not. All list the output of the
    # final norm last.
    offset = 0 if (("block", 0) in recorded and _relative_error(recorded["block", 0], states[0]) == 0) else 1
    states[-1] = recorded.get(("input", None))
    pairs = {layer: (recorded.get(("block", layer)), states[min(layer + offset, len(states) - 1)]) for layer in layers}
    errors = {
        layer: _relative_error(ours, theirs)
        for layer, (ours, theirs) in pairs.items()
        if ours is not None and theirs is not None
    }
    wrong_layers = [layer for layer in errors if errors[layer] > max_error]
    if wrong_layers:
        raise InputError(
            "model_config.module_name_mapping: block is not what it says: the output of "
            f"{_path(mapping, 'block', wrong_layers[0])} differs from the model's hidden state there by "
            f"{errors[wrong_layers[0]]:.2g} of its norm, allowed is {max_error:g}; name the modules that are blocks, "
            "or give the key another name, which is stored unchecked"
        )
    return (
        _checked_finding(errors, max_error)
        if errors
        else _unchecked_finding("the model gives no hidden state after its last block")
    )


def _check_branches(recorded: Recorded, layers: Sequence[int], max_error: float, mapping: Mapping[str, str]) -> Finding:
    """Compare block input + attn + mlp with block output."""
    errors, only_keys = {}, None
    for layer in layers:
        block_input, block_output = recorded.get(("input", layer)), recorded.get(("block", layer))
        if block_input is None or block_output is None:
            return _unchecked_finding("the mapping has no block to compare with")
        branches = {
            key: _nan_unless_alike(recorded[key, layer], block_output) for key in BRANCHES if (key, layer) in recorded
        }
        # In half precision a sum has the rounding error of its largest part, which may cancel within a block.
        errors[layer] = _relative_error(
            block_input + sum(branches.values()), block_output, (block_input, *branches.values())
        )
        if errors[layer] > max_error and len(branches) == len(BRANCHES):
            raise InputError(_mismatch_message(branches, block_output, layer, errors[layer], max_error, mapping))
        if errors[layer] > max_error:
            only_keys = ", ".join(branches)
    return (
        _checked_finding(errors, max_error)
        if only_keys is None
        else _unchecked_finding(f"the mapping has only {only_keys} of attn and mlp")
    )


def _nan_unless_alike(branch: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return a branch if it has the shape of the block's output, else NaN in that shape."""
    return branch if branch.shape == expected.shape else torch.full_like(expected, torch.nan)


def _mismatch_message(
    branches: Mapping[str, torch.Tensor],
    block_output: torch.Tensor,
    layer: int,
    error: float,
    max_error: float,
    mapping: Mapping[str, str],
) -> str:
    """Return the error message for branches that do not add up to their block."""
    whole_block_keys = [key for key, branch in branches.items() if _relative_error(branch, block_output) <= max_error]
    hint = f"; the output of {whole_block_keys[0]} is the whole block's" if whole_block_keys else ""
    paths = ", ".join(f"{key} is {_path(mapping, key, layer)}" for key in BRANCHES)
    return (
        f"model_config.module_name_mapping: attn and mlp are not what they say: in layer {layer} block input + attn + "
        f"mlp differs from block output by {error:.2g} of the largest of their norms, allowed is {max_error:g} "
        f"({paths}{hint}); name the modules whose outputs are added to the residual stream, or give the keys other "
        "names, which are not checked"
    )


def _path(mapping: Mapping[str, str], key: str, layer: int) -> str:
    return mapping[key].replace("{layer}", str(layer))
