"""The loss that each batch size ends at, drawn."""

from __future__ import annotations

from typing import Any

import pandas as pd

from depthgauge import drawing

TUNED = "a rate tuned for each"


def _errors(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    flipped = rows.assign(value=1 - rows["value"], low_95=1 - rows["high_95"], high_95=1 - rows["low_95"])
    drawing.estimates(axis, flipped, joined=True, **options)
    axis.set_ylabel("test error")


@drawing.figure(
    "budgets", "What a batch size ends at depends on what is held equal, and on its learning rate",
    lambda budget_ends: f"Share of test examples that are wrong, mean of {budget_ends['n'].min()} runs with 95 % "
    "intervals. The one rate for all is the best of the batch where all lines meet; rates in proportion start there.",
)  # fmt: skip
def draw_accuracy(budget_ends: pd.DataFrame) -> Any:
    """Test error by batch size, a panel a budget."""
    shown = budget_ends[budget_ends["metric"] == "test_accuracy"]
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch size"}
    return drawing.panels(shown, "budget", _errors, at="batch", by="rates", axes=axes)


@drawing.figure(
    "budget_loss", "The test loss that each batch size ends at, with equal epochs and with equal steps",
    lambda budget_ends: f"At the rate tuned for the loss, mean of {budget_ends['n'].min()} runs with 95 % intervals.",
)  # fmt: skip
def draw_loss(budget_ends: pd.DataFrame) -> Any:
    """Test loss by batch size, a line a budget."""
    shown = budget_ends[(budget_ends["metric"] == "test_loss") & (budget_ends["rates"] == TUNED)]
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch size", "ylabel": "test loss"}
    return drawing.panels(shown, "", drawing.estimates, at="batch", by="budget", joined=True, axes=axes)
