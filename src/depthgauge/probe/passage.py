"""The passage of a signal through the weight layers of networks: tables from the rows of `probe.weight_layers`."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

TWICE_LN10 = 2 * math.log(10)  # ln of a square to decades


def log_signals(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `weight_layers` with a column `log`, ln of the signal.

    Forward it is the second moment an element; backward the squared norm of one example's gradient, over that of the
    last layer: with weights scaled by fan-in these are what a layer multiplies by a factor that knows no shapes.

    Args:
        rows: those of several passes, told apart by a column `case`.
    """
    back = rows["direction"] == "backward"
    with np.errstate(divide="ignore"):
        table = rows.assign(log=np.log(rows["second_moment"] * rows["elements"].where(back, 1.0)))
    last = table[back].sort_values("layer_index").drop_duplicates("case", keep="last").set_index("case")["log"]
    table.loc[back, "log"] -= table.loc[back, "case"].map(last)
    return table


def by_seed(signals: pd.DataFrame, direction: str) -> pd.DataFrame:
    """One network's ln of the signal in a direction: one row a seed (a column of `signals`), one column a call."""
    own = signals[signals["direction"] == direction]
    names = own.drop_duplicates("layer_index").set_index("layer_index")["layer"].to_dict()
    return own.pivot_table(index="seed", columns="layer_index", values="log", dropna=False).rename(columns=names)


def furthest(backward: pd.DataFrame) -> pd.DataFrame:
    """By seed, the `layer` whose gradient norm is furthest from the output's, and by how many `decades`."""
    logs = backward.to_numpy()
    place = np.abs(logs).argmax(axis=1)
    decades = logs[np.arange(len(place)), place] / TWICE_LN10
    return pd.DataFrame({"layer": backward.columns[place], "decades": decades}, backward.index)


def middle(off: pd.DataFrame) -> tuple[float, str]:
    """Decades and layer of the seed in the middle of `furthest`, by distance; both are those of one network.

    Of an even number it is the further of the two in the middle; what is no number counts as furthest.
    """
    order = off["decades"].abs().sort_values(kind="stable", na_position="last").index
    row = off.loc[order].iloc[len(order) // 2]
    return float(row["decades"]), str(row["layer"])


def spread(backward: pd.DataFrame, other: pd.DataFrame) -> pd.Series[float]:
    """By seed, decades between the largest and the smallest gradient norm of the layers that both networks have."""
    common = backward.loc[:, backward.columns.isin(other.columns)]
    return pd.Series(np.ptp(common.to_numpy(), axis=1) / TWICE_LN10, common.index)


def profile(signals: pd.DataFrame) -> pd.DataFrame:
    """Median and range over seeds, call by call, in decades of the root mean square and of the gradient's norm."""
    decades = signals.assign(value=signals["log"] / TWICE_LN10)
    values = decades.groupby(["direction", "layer_index", "layer"], sort=False)["value"]
    table = values.agg(median="median", low="min", high="max", n="size").reset_index()
    return table.assign(depth=(table["layer_index"] - 1) / max(table["layer_index"].max() - 1, 1))
