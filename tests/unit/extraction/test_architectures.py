"""Every architecture that has a preset, through the pipeline: from a folder on disk to estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import polars as pl
import pytest
import torch
from architectures import build
from conftest import WORDS, study
from transformers import AutoModelForCausalLM
from verbs import Session

from id_scaling.cli.main import main
from id_scaling.models.modules import PRESETS
from id_scaling.storage.layout import file_of
from id_scaling.storage.records import read_record, read_table

HELD = ("block", "attn", "mlp")


def save(model_type: str, folder: Path, **changes: Any) -> Path:
    """Save a tiny random model of an architecture with a tokenizer of few words."""
    model = build(model_type, "cpu", vocab_size=len(WORDS) + 1, **changes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # Wide enough that every branch adds much more than rounding does.
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", PRESETS)
def test_an_architecture_goes_from_a_folder_to_estimates(
    model_type: str, tmp_path: Path, tiny_llama: Path, text_folder: Path
) -> None:
    folder, keys = save(model_type, tmp_path / "model"), list(PRESETS[model_type])
    config = study(folder, text_folder, ctx_len=32, model_config__tokenizer=str(tiny_llama))
    config["cacheing_config"] |= {
        "save_mean_tensors": True,
        "module_inblock_keys": [key for key in keys if key in HELD],
        "module_outblock_keys": [key for key in keys if key not in HELD],
    }
    session = Session(tmp_path / "session", config)
    manifest = read_record(Path(session.paths["manifest"]))
    for key, finding in manifest["meaning"].items():
        assert finding["verdict"] == ("checked" if key in HELD else "unchecked"), (key, finding)
    # Two additions in float32; the branches are as large as the stream.
    assert max(manifest["meaning"][key]["worst"] for key in HELD if key in keys) < 1e-6

    run = Path(session.paths["manifest"]).parent
    ids = torch.tensor(read_table(Path(session.paths["contexts"]))[0]["input_ids"].to_list())
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        output = model(ids, output_hidden_states=True)
    states = output.hidden_states[0 if model_type in ("mamba", "rwkv") else 1 :]
    with h5py.File(run / file_of(0)) as file:
        means = torch.from_numpy(file["block/mean"][:])
    # Sums in another order, of batches of another size.
    torch.testing.assert_close(means, states[0].mean(dim=1), rtol=1e-4, atol=1e-5)

    losses = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert pl.read_parquet(run / "tokens.parquet")["loss"].mean() == pytest.approx(losses.item(), rel=1e-5)

    for module in ("block", "unemb"):
        table = tmp_path / f"{module}.parquet"
        assert main(session.estimate(module, "mle", table)) == 0
        estimates = pl.read_parquet(table).filter(pl.col("view") == "default")
        assert set(estimates["status"]) == {"ok"}


def test_an_architecture_without_a_preset_goes_with_the_paths_that_are_given(
    tmp_path: Path, tiny_llama: Path, text_folder: Path
) -> None:
    """Cohere's blocks add attention and MLP side by side; its logits are scaled."""
    folder = save("cohere", tmp_path / "model", logit_scale=0.5)
    block = "model.layers.{layer}"
    mapping = {
        "block": block,
        "attn": f"{block}.self_attn",
        "mlp": f"{block}.mlp",
        "heads": f"{block}.self_attn.o_proj",
    }
    changes = {"model_config__tokenizer": str(tiny_llama), "model_config__module_name_mapping": mapping}
    config = study(folder, text_folder, ctx_len=32, **changes)
    config["cacheing_config"] |= {"module_inblock_keys": list(mapping), "module_outblock_keys": []}
    session = Session(tmp_path / "session", config)
    meaning = read_record(Path(session.paths["manifest"]))["meaning"]
    assert {key: finding["verdict"] for key, finding in meaning.items()} == {
        **dict.fromkeys(HELD, "checked"),
        "heads": "unchecked",
    }
    ids = torch.tensor(read_table(Path(session.paths["contexts"]))[0]["input_ids"].to_list())
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    tokens = pl.read_parquet(Path(session.paths["manifest"]).with_name("tokens.parquet"))
    assert tokens["loss"].mean() == pytest.approx(losses.item(), rel=1e-5)


def test_paths_that_do_not_mean_what_their_keys_say_stop_the_run_before_anything_is_stored(
    tmp_path: Path, tiny_llama: Path, text_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = save("gemma2", tmp_path / "model")
    mapping = {key: path for key, path in PRESETS["llama"].items() if key in HELD}
    changes = {"model_config__tokenizer": str(tiny_llama), "model_config__module_name_mapping": mapping}
    config = study(folder, text_folder, ctx_len=32, **changes)
    config["cacheing_config"]["module_outblock_keys"] = []
    with pytest.raises(AssertionError):
        Session(tmp_path / "session", config)
    assert "attn and mlp are not what they say: in layer 0 block input + attn + mlp differs" in capsys.readouterr().err
    assert not list((tmp_path / "session" / "manifest").rglob("*.h5"))
