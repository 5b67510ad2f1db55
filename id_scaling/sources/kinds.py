"""The table of kinds of sources: the first kind of a row that knows a name takes it.

To add a kind, write its classes in a module of its own and name them here.
"""

from __future__ import annotations

from id_scaling.sources.base import DatasetSource, ModelSource, TokenizerSource
from id_scaling.sources.bundled import BundledDataset, BundledModel, BundledTokenizer
from id_scaling.sources.gguf import GgufModel, GgufTokenizer
from id_scaling.sources.hub import HubDataset, HubModel, HubTokenizer
from id_scaling.sources.local import LocalDataset, LocalModel, LocalTokenizer
from id_scaling.sources.untrained import UntrainedModel

# What is of no other kind is a name on the hub, which comes last.
MODELS: tuple[type[ModelSource], ...] = (GgufModel, UntrainedModel, BundledModel, LocalModel, HubModel)
TOKENIZERS: tuple[type[TokenizerSource], ...] = (GgufTokenizer, BundledTokenizer, LocalTokenizer, HubTokenizer)
DATASETS: tuple[type[DatasetSource], ...] = (BundledDataset, LocalDataset, HubDataset)
