"""Intrinsic dimension of in-context representation manifolds of language models.

The names below load on first use, so that `import id_scaling` costs nothing and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Estimate", "estimate", "estimate_batch", "load_contexts", "load_summary", "load_tokens"]

if TYPE_CHECKING:
    from id_scaling.estimators.arrays import estimate, estimate_batch
    from id_scaling.estimators.base import Estimate
    from id_scaling.results.load import load_contexts, load_summary, load_tokens

_HOMES = {
    "Estimate": "id_scaling.estimators.base",
    "estimate": "id_scaling.estimators.arrays",
    "estimate_batch": "id_scaling.estimators.arrays",
    "load_contexts": "id_scaling.results.load",
    "load_summary": "id_scaling.results.load",
    "load_tokens": "id_scaling.results.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'id_scaling' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
