"""Training steps and tokens of a checkpoint, read from its name."""

from __future__ import annotations

import re

from id_scaling.sources.untrained import seed_of

# `step_50k`, `step1.5`, and `checkpoint-2024-05-01` do not give a step.
STEP = re.compile(r"(?:^|[^a-z])(?:step|checkpoint|iter)[-_]?(\d+)(?![\w.]|-\d)", re.IGNORECASE)
# A later stage counts its steps and tokens from its own start, so the total is unknown.
LATER_STAGE = re.compile(r"stage[-_]?(?!0*1(?:\D|$))\d", re.IGNORECASE)
# Revisions of OLMo name their tokens: `step1000-tokens4B`.
TOKENS = re.compile(r"tokens(\d+)([MBT])")
UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}
# Tokens per update: 1024 sequences of 2048 tokens (Biderman et al. 2023); 8 sequences of 256 for the bundled models.
TOKENS_PER_UPDATE = {"EleutherAI/pythia-": 1024 * 2048, "sotu-neox-": 8 * 256}


def training_step(checkpoint: str) -> int | None:
    """Return the number of training updates of a checkpoint; 0 for untrained weights, None if its name does not say.

    Examples
    --------
    >>> training_step("step1000"), training_step("random-init"), training_step("main")
    (1000, 0, None)
    """
    if seed_of(checkpoint) is not None:
        return 0
    name = checkpoint.rstrip("/").split("/")[-1]
    match = None if LATER_STAGE.search(name) else STEP.search(name)
    return match and int(match[1])


def training_tokens(model_name: str, checkpoint: str) -> int | None:
    """Return the number of training tokens of a checkpoint, from its name or the name of its model, or None.

    Examples
    --------
    >>> training_tokens("EleutherAI/pythia-70m", "step1000")
    2097152000
    >>> training_tokens("allenai/OLMo-2-0425-1B", "stage1-step10000-tokens21B")
    21000000000
    """
    step, tokens = training_step(checkpoint), TOKENS.search(checkpoint)
    if tokens and step is not None:
        return int(tokens[1]) * UNITS[tokens[2]]
    tokens_per_update = next(
        (n_tokens for family, n_tokens in TOKENS_PER_UPDATE.items() if model_name.startswith(family)), None
    )
    if not step:
        return step
    return tokens_per_update and step * tokens_per_update
