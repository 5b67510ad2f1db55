"""Controls of the text: contexts with their structure broken, to be compared with plain contexts.

`shuffle-S` follows Viswanathan et al. (2025), The geometry of tokens in internal representations of large language
models: the tokens of a context are split into min(4^S, n_tokens) blocks, and the order of the blocks is permuted. A
beginning-of-sequence token, which is not from the document, keeps its place.
"""

from __future__ import annotations

import hashlib
import json
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from id_scaling.runtime.atomic_files import canonical_json, writing
from id_scaling.runtime.logging import LOG
from id_scaling.storage.context_hashes import RowHash, content_of, recipe_of
from id_scaling.storage.records import FACTS, check_seal, seal, table_metadata

if TYPE_CHECKING:
    import pyarrow as pa

NONE, SHUFFLE = "none", "shuffle-"
CONTROLS = (NONE, *(f"{SHUFFLE}{level}" for level in range(1, 6)))
# Contexts in memory at a time.
BATCH = 1024


def shuffle_contexts(source: Path, settings: dict[str, Any], output: Path) -> None:
    """Write the contexts of a control: the contexts of `none` in the same order, with the tokens of each shuffled.

    Parameters
    ----------
    source : Path
        `contexts.parquet` of `none`.
    settings : dict
        Settings of the job; `control` is `shuffle-S`.
    output : Path
        The table to write. Its facts are those of `source`, with the settings of the job, the content hash of `source`
        as `made_from`, the hash of the shuffled tokens, and a description of the shuffle as `rule`.

    Raises
    ------
    StoreError
        `source` is missing or damaged.
    """
    import pyarrow.parquet as pq

    check_seal(source)
    level = int(settings["control"].removeprefix(SHUFFLE))
    with pq.ParquetFile(source) as file, writing(output) as temporary:
        facts = json.loads(file.metadata.metadata[FACTS.encode()])
        facts |= {"settings": settings, "made_from": {"contexts": content_of(facts)}, "plain": recipe_of(facts)}
        n_fixed, tokens, schema = int(facts["bos"] is not None), RowHash(), file.schema_arrow.remove_metadata()
        with pq.ParquetWriter(temporary, schema) as writer:
            for batch in file.iter_batches(BATCH):
                shuffled_batch = _shuffled_batch(batch, level, n_fixed, schema)
                for row in shuffled_batch["input_ids"].to_numpy(zero_copy_only=False):
                    tokens.add_tokens(row)
                writer.write_batch(shuffled_batch)
            facts |= {"tokens_sha256": tokens.hexdigest(), "rule": _rule(level)}
            writer.add_key_value_metadata(table_metadata(facts))
        seal(temporary)
        LOG.info("%s of %d contexts", settings["control"], file.metadata.num_rows)


def shuffled(  # type: ignore[return]  # draws are counted without end
    tokens: np.ndarray, level: int, document_id: str, chunk: int
) -> np.ndarray:
    """Return tokens with their blocks in another order.

    The n_blocks = min(4^level, n_tokens) blocks are contiguous, and their sizes differ by at most one: the first
    n_tokens mod n_blocks blocks are the larger ones. Each block gets 64 bits of SHAKE-256 of [document_id, chunk,
    level, draw], and the blocks are sorted by these bits. So the order depends only on the context, and not on other
    contexts or the model. `draw` starts at 0, and increases while the order is the original one. A single block is
    returned unchanged.

    Parameters
    ----------
    tokens : (n_tokens,) array
        Tokens without those that keep their place.
    level : int
        S, at least 0.
    document_id : str
        The document of the context.
    chunk : int
        The context's number in its document.
    """
    n_blocks = min(4**level, len(tokens))
    if n_blocks < 2:
        return tokens
    sizes = np.full(n_blocks, len(tokens) // n_blocks)
    sizes[: len(tokens) % n_blocks] += 1
    block_of_token = np.repeat(np.arange(n_blocks), sizes)
    for draw in count():
        identity = canonical_json([document_id, chunk, level, draw])
        keys = np.frombuffer(hashlib.shake_256(identity.encode()).digest(8 * n_blocks), "<u8")
        if (keys.argsort(kind="stable") != np.arange(n_blocks)).any():
            return tokens[keys[block_of_token].argsort(kind="stable")]


def _shuffled_batch(batch: pa.RecordBatch, level: int, n_fixed: int, schema: pa.Schema) -> pa.RecordBatch:
    """Return contexts in which all tokens except the first `n_fixed` are shuffled."""
    import pyarrow as pa

    column = batch.schema.get_field_index("input_ids")
    identities = zip(batch["document_id"].to_pylist(), batch["chunk"].to_pylist(), strict=True)
    rows = [
        np.concatenate([tokens[:n_fixed], shuffled(tokens[n_fixed:], level, *identity)])
        for tokens, identity in zip(batch[column].to_numpy(zero_copy_only=False), identities, strict=True)
    ]
    columns = batch.columns
    columns[column] = pa.array(rows, schema.field(column).type)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _rule(level: int) -> str:
    """Return a description of the shuffle."""
    return (
        f"tokens of a context, a beginning-of-sequence token left where it is, in min(4^{level}, tokens) blocks of "
        "sizes that differ by at most one; order of the blocks by SHAKE-256 of [document_id, chunk, level, draw]"
    )
