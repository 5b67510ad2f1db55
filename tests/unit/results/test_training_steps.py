"""What names of checkpoints say of their training."""

from __future__ import annotations

import pytest

from id_scaling.results.training_steps import training_step, training_tokens


@pytest.mark.parametrize(
    ("model", "checkpoint", "step", "tokens"),
    [
        # The last of Pythia's checkpoints has seen 299,892,736,000 tokens (Biderman et al. 2023).
        ("EleutherAI/pythia-410m", "step143000", 143000, 299_892_736_000),
        ("EleutherAI/pythia-410m", "step0", 0, 0),
        ("EleutherAI/pythia-410m", "main", None, None),
        ("allenai/OLMo-1B-hf", "step20000-tokens84B", 20000, 84_000_000_000),
        ("allenai/OLMo-2-1124-7B", "stage1-step1000-tokens5B", 1000, 5_000_000_000),
        ("./mine", "checkpoint-500", 500, None),
        ("./mine", "iter_0001000", 1000, None),
        ("./mine", "random-init-3", 0, 0),
        ("./mine", "v2", None, None),
        ("./mine", "footstep7", None, None),
        ("./mine", "step_50k", None, None),
        ("./mine", "step1.5", None, None),
        ("./mine", "checkpoint-2024-05-01", None, None),
        ("./mine", "iter2/final", None, None),
        ("./mine", "runs/step7", 7, None),
        # Of a later stage they count from its start.
        ("allenai/OLMo-2-1124-7B", "stage2-ingredient1-step1000-tokens3B", None, None),
        ("sotu-neox-64", "step256", 256, 256 * 8 * 256),
    ],
)
def test_a_name_says_updates_and_tokens(model: str, checkpoint: str, step: int | None, tokens: int | None) -> None:
    assert (training_step(checkpoint), training_tokens(model, checkpoint)) == (step, tokens)


def test_tokens_of_an_update_are_those_of_the_training() -> None:
    from id_scaling.sources.bundled import TRAINED, TRAINED_STEPS, config_of
    from id_scaling.sources.bundled_training import BATCH

    for model in TRAINED:
        n_positions = config_of(model)["max_position_embeddings"]
        last = TRAINED_STEPS[-1]
        assert training_tokens(model, f"step{last}") == last * BATCH * n_positions
