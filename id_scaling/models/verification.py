"""Whether modules mean what their keys say, found on the first tokens of a run before anything is stored.

`block` is the residual stream after a block, `attn` and `mlp` are what each adds to it, so that

    block input + attn + mlp = block output,

and the outputs of blocks are the model's own hidden states. Keys of any other name mean what their user means.
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

HELD = ("block", "attn", "mlp")
BRANCHES = ("attn", "mlp")
TOKENS_CHECKED = 128
# Of the largest norm of a token's parts: two additions round by 1e-7 in float32, and by 1e-3 to 1e-2 in half precision.
MOST_OFF, MOST_OFF_IN_HALF = 1e-4, 2e-2

Finding = dict[str, Any]


def check_meaning(
    model: Any, sites: Sequence[Site], mapping: Mapping[str, str], model_type: str, input_ids: torch.Tensor
) -> dict[str, Finding]:
    """Return what was found of each module key: how far it is from what it says, or why that was not checked.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    sites : sequence of Site
        Where activations are read.
    mapping : mapping of str to str
        Module key -> path, of all keys that are known.
    model_type : str
        Its architecture.
    input_ids : Tensor of shape (contexts, tokens)
        Contexts; the first `TOKENS_CHECKED` tokens of the first are run.

    Returns
    -------
    dict
        Module key -> `verdict`, `checked` or `unchecked`. A checked one has `worst`, the largest
        difference of a token in the norm of its largest part, `layer`, where that is, and `allowed`; an unchecked one
        has a `reason`.

    Raises
    ------
    InputError
        A key does not mean what it says.
    """
    findings = {site.module: _unchecked("its name is none of block, attn and mlp") for site in sites}
    held = [key for key in findings if key in HELD]
    if not held:
        return findings
    layers = sorted(cast("set[int]", {site.layer for site in sites if site.module in HELD}))
    # Branches add up to a block only together; where none is asked for, what the mapping says of them is not looked at.
    keys = HELD if any(key in BRANCHES for key in held) else ("block",)
    with _watched(model, layers, keys, mapping, model_type) as seen, torch.inference_mode():
        output = decoder_of(model)(input_ids[:1, :TOKENS_CHECKED], use_cache=False, output_hidden_states=True)
    half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    allowed = MOST_OFF_IN_HALF if half else MOST_OFF
    if "block" in held:
        findings["block"] = _of_blocks(seen, layers, output.hidden_states, allowed, mapping)
    if keys == HELD:
        of_branches = _of_branches(seen, layers, allowed, mapping)
        findings |= {key: of_branches for key in held if key in BRANCHES}
    return findings


def _unchecked(reason: str) -> Finding:
    return {"verdict": "unchecked", "reason": reason}


def _checked(off: Mapping[int, float], allowed: float) -> Finding:
    """Return the finding of layers that are this far off."""
    off = {layer: value for layer, value in off.items() if not math.isnan(value)}
    if not off:
        return _unchecked("no token of the outputs is finite")
    layer = max(off, key=off.__getitem__)
    return {"verdict": "checked", "worst": off[layer], "layer": layer, "allowed": allowed}


Seen = dict[tuple[str, int | None], torch.Tensor]


@contextmanager
def _watched(
    model: Any, layers: Sequence[int], keys: Sequence[str], mapping: Mapping[str, str], model_type: str
) -> Iterator[Seen]:
    """Yield what the forward passes within give: outputs of modules, and as `input` what enters blocks and the end."""
    seen: Seen = {}

    def keep(key: str, layer: int | None) -> Callable:
        # Copied at once: some architectures add to a module's output in place later.
        return lambda _module, _inputs, output: seen.update({(key, layer): _tokens(output)})

    def keep_input(layer: int | None) -> Callable:
        return lambda _module, inputs, named: seen.update({("input", layer): _tokens(_first(inputs, named))})

    modules = dict(model.named_modules())
    with ExitStack() as stack:

        def hook(template: str | None, layer: int | None, kind: str, function: Callable, **options: bool) -> None:
            module = modules.get((template or "{layer}").replace("{layer}", str(layer)))
            if module is not None:
                stack.callback(getattr(module, kind)(function, **options).remove)

        for layer in layers:
            for key in keys:
                hook(mapping.get(key), layer, "register_forward_hook", keep(key, layer))
            hook(mapping.get("block"), layer, "register_forward_pre_hook", keep_input(layer), with_kwargs=True)
            hook(ENTRIES.get(model_type), layer, "register_forward_hook", keep("input", layer))
        hook(mapping.get("unemb"), None, "register_forward_pre_hook", keep_input(None), with_kwargs=True)
        yield seen


def _first(inputs: tuple, named: Mapping[str, Any]) -> Any:
    """Return what a module was called with first, however that was passed."""
    return inputs[0] if inputs else named.get("hidden_states")


def _tokens(values: Any) -> torch.Tensor:
    """Return activations as (tokens, d) in float32 on the host."""
    values = first_of(values).detach().float().cpu()
    return values.reshape(-1, values.shape[-1]).clone()


def _off(found: torch.Tensor, expected: torch.Tensor, parts: Iterable[torch.Tensor] = ()) -> float:
    """Return the largest ‖found - expected‖ of a token with a finite `expected`, in the norm of its largest part.

    NaN where there is no such token; infinity for another shape or a `found` that is not finite.
    """
    if found.shape != expected.shape:
        return float("inf")
    is_finite = expected.isfinite().all(dim=-1)
    norms = torch.stack([one.norm(dim=-1) for one in (expected, *parts)]).amax(dim=0)[is_finite]
    differences = (found - expected).norm(dim=-1)[is_finite]
    off = differences / norms.clamp_min(torch.finfo(torch.float32).tiny)
    return float(off.nan_to_num(nan=torch.inf).max()) if len(off) else math.nan


def _of_blocks(
    seen: Seen,
    layers: Sequence[int],
    hidden_states: Sequence[torch.Tensor] | None,
    allowed: float,
    mapping: Mapping[str, str],
) -> Finding:
    """Compare outputs of blocks with the model's hidden states, and that of the last with what enters the end."""
    if hidden_states is None:
        return _unchecked("the model gives no hidden states")
    states: list[Any] = [_tokens(state) for state in hidden_states]
    # Most give what enters block 0 first. Some do not, as Mamba and RWKV. The last is the final norm's output in all.
    first = 0 if (("block", 0) in seen and _off(seen["block", 0], states[0]) == 0) else 1
    states[-1] = seen.get(("input", None))
    pairs = {layer: (seen.get(("block", layer)), states[min(layer + first, len(states) - 1)]) for layer in layers}
    off = {
        layer: _off(ours, theirs) for layer, (ours, theirs) in pairs.items() if ours is not None and theirs is not None
    }
    wrong = [layer for layer in off if off[layer] > allowed]
    if wrong:
        raise InputError(
            "model_config.module_name_mapping: block is not what it says: the output of "
            f"{_path(mapping, 'block', wrong[0])} differs from the model's hidden state there by {off[wrong[0]]:.2g} "
            f"of its norm, allowed is {allowed:g}; name the modules that are the blocks, or give the key another name, "
            "which is stored unchecked"
        )
    return _checked(off, allowed) if off else _unchecked("the model gives no hidden state after its last block")


def _of_branches(seen: Seen, layers: Sequence[int], allowed: float, mapping: Mapping[str, str]) -> Finding:
    """Compare block input + attn + mlp with block output."""
    off, lone = {}, None
    for layer in layers:
        before, after = seen.get(("input", layer)), seen.get(("block", layer))
        if before is None or after is None:
            return _unchecked("the mapping has no block to compare with")
        added = {key: _as_like(seen[key, layer], after) for key in BRANCHES if (key, layer) in seen}
        # In half precision a sum rounds by its largest part, which a block may cancel.
        off[layer] = _off(before + sum(added.values()), after, (before, *added.values()))
        if off[layer] > allowed and len(added) == len(BRANCHES):
            raise InputError(_unlike(added, after, layer, off[layer], allowed, mapping))
        if off[layer] > allowed:
            lone = ", ".join(added)
    return _checked(off, allowed) if lone is None else _unchecked(f"the mapping has {lone} alone of attn and mlp")


def _as_like(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return a branch where it has the block's shape, else NaN of that shape."""
    return found if found.shape == expected.shape else torch.full_like(expected, torch.nan)


def _unlike(
    added: Mapping[str, torch.Tensor],
    after: torch.Tensor,
    layer: int,
    off: float,
    allowed: float,
    mapping: Mapping[str, str],
) -> str:
    """Return what to say of branches that do not make their block."""
    whole = [key for key, branch in added.items() if _off(branch, after) <= allowed]
    hint = f"; the output of {whole[0]} is the whole block's" if whole else ""
    paths = ", ".join(f"{key} is {_path(mapping, key, layer)}" for key in BRANCHES)
    return (
        f"model_config.module_name_mapping: attn and mlp are not what they say: in layer {layer} block input + attn + "
        f"mlp differs from block output by {off:.2g} of the largest of their norms, allowed is {allowed:g} "
        f"({paths}{hint}); name the modules whose outputs are added to the residual stream, or give the keys other "
        "names, which are not checked"
    )


def _path(mapping: Mapping[str, str], key: str, layer: int) -> str:
    return mapping[key].replace("{layer}", str(layer))
