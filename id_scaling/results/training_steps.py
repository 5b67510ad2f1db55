"""How far a checkpoint is in its training, as far as its name says it."""

from __future__ import annotations

import re

from id_scaling.sources.untrained import seed_of

# `step_50k`, `step1.5` and `checkpoint-2024-05-01` say no step.
STEP = re.compile(r"(?:^|[^a-z])(?:step|checkpoint|iter)[-_]?(\d+)(?![\w.]|-\d)", re.IGNORECASE)
# Steps and tokens of a later stage count from its start.
LATER_STAGE = re.compile(r"stage[-_]?(?!0*1(?:\D|$))\d", re.IGNORECASE)
# OLMo's revisions say their tokens: `step1000-tokens4B`.
TOKENS = re.compile(r"tokens(\d+)([MBT])")
UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}
# Tokens of an update: 1024 sequences of 2048 (Biderman et al. 2023); 8 of 256 of the models that are trained here.
OF_UPDATE = {"EleutherAI/pythia-": 1024 * 2048, "sotu-neox-": 8 * 256}


def training_step(checkpoint: str) -> int | None:
    """Return the updates that a checkpoint has had; 0 for untrained weights, None where its name does not say it.

    Examples
    --------
    >>> training_step("step1000"), training_step("random-init"), training_step("main")
    (1000, 0, None)
    """
    if seed_of(checkpoint) is not None:
        return 0
    name = checkpoint.rstrip("/").split("/")[-1]
    found = None if LATER_STAGE.search(name) else STEP.search(name)
    return found and int(found[1])


def training_tokens(model_name: str, checkpoint: str) -> int | None:
    """Return the tokens that a checkpoint has been trained on, as its name or its model's says; else None.

    Examples
    --------
    >>> training_tokens("EleutherAI/pythia-70m", "step1000")
    2097152000
    >>> training_tokens("allenai/OLMo-2-0425-1B", "stage1-step10000-tokens21B")
    21000000000
    """
    step, said = training_step(checkpoint), TOKENS.search(checkpoint)
    if said and step is not None:
        return int(said[1]) * UNITS[said[2]]
    of_update = next((n_tokens for family, n_tokens in OF_UPDATE.items() if model_name.startswith(family)), None)
    if not step:
        return step
    return of_update and step * of_update
