"""The row of a table that leads it, or ends it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def highest(table: pd.DataFrame, column: str) -> pd.Series[Any]:
    """The row of the largest value; NaN is smaller than all."""
    return table.iloc[int(np.nan_to_num(table[column].to_numpy(float), nan=-np.inf).argmax())]


def lowest(table: pd.DataFrame, column: str) -> pd.Series[Any]:
    """The row of the smallest value; NaN is larger than all."""
    return table.iloc[int(np.nan_to_num(table[column].to_numpy(float), nan=np.inf).argmin())]
