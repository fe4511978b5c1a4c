"""Views of the tidy frame that an analysis gets: one row a number, under the parameters of its case.

params = params_of(frame, "activation", "depth", "seed")     # one row a case
params["accuracy"] = only(frame, "test_accuracy")            # that case's one number
for (activation, depth), own in groups(params, ["activation", "depth"]):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd


def by_case(rows: pd.DataFrame, metric: str, direction: str | None = None) -> pd.DataFrame:
    """One row a case, one column a layer."""
    chosen = rows[rows["metric"] == metric]
    if direction is not None:
        chosen = chosen[chosen["direction"] == direction]
    return chosen.pivot_table(index="case", columns="layer_index", values="value", sort=False, dropna=False)


_ROOM = 40  # characters of a layer's name on an axis


def layers_to_name(profiles: pd.DataFrame, most: int = 30) -> pd.DataFrame:
    """One row a layer, in their order: as many, evenly, as an axis has room to name, by the end of a long name."""
    layers = profiles.drop_duplicates("layer_index").sort_values("layer_index")
    labelled = layers.iloc[:: max(1, -(-len(layers) // most))]
    return labelled.assign(
        layer=[name if len(name) <= _ROOM else f"…{name[1 - _ROOM :]}" for name in labelled["layer"]]
    )


def logs(frame: pd.DataFrame) -> pd.DataFrame:
    """Natural logarithms; the logarithm of 0 is -infinity."""
    with np.errstate(divide="ignore"):
        return pd.DataFrame(np.log(frame.to_numpy()), frame.index, frame.columns)


def only(rows: pd.DataFrame, metric: str) -> pd.Series[float]:
    """The one number of each case."""
    return rows[rows["metric"] == metric].set_index("case")["value"]


def params_of(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """One row a case: its parameters."""
    return rows.drop_duplicates("case").set_index("case").reindex(columns=list(names))


def records(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples."""
    return iter(frame.itertuples())


def groups(frame: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """(key, rows) for each value of a column, or of several, in order of first appearance."""
    yield from frame.groupby(by, sort=False)
