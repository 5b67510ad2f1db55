"""The sweep over training, full size: a loss that falls with the training step and with the width.

`python -m tests.simulations.sweep_over_training` reads the summary that `config/training.yaml` ends in and prints the
table of docs/studies.md: mean loss, and mean ID of block 3, at each width and step.
"""

from __future__ import annotations

import polars as pl

import id_scaling

LAYER = 3


def main() -> None:
    """Print the table; raise an AssertionError where the loss does not fall."""
    summary = id_scaling.load_summary("results/training").filter(pl.col("view") == "default")
    sites = summary.filter(module="block", layer=LAYER).with_columns(
        width=pl.col("model").str.split("-").list.last().cast(pl.Int64),
        step=pl.col("checkpoint").str.strip_prefix("step").cast(pl.Int64),
    )
    table = sites.pivot("estimator", index=["width", "step", "mean_loss"], values="mean").sort("width", "step")
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, float_precision=2):
        print(table)
    for (width,), of_width in table.group_by("width"):
        assert of_width["mean_loss"].is_sorted(descending=True), f"width {width}: the loss rises"
    for (step,), of_step in table.filter(pl.col("step") > 0).group_by("step"):
        assert of_step["mean_loss"].is_sorted(descending=True), f"step {step}: the loss rises with the width"


if __name__ == "__main__":
    main()
