"""The passage of signal and gradient through the weight layers, and how far it may stray."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import architecture, probe, theory
from depthgauge.checking.beginning import quietly
from depthgauge.checking.questions.signal.units import variation
from depthgauge.initialization.maps import fans, weighted
from depthgauge.probe.passage import TWICE_LN10, log_signals
from depthgauge.workload import Training

NEIGHBOURS = (
    3  # first and last calls, of twelve or more, whose largest gradient counts: one may lie in a branch of its own
)
WIDE = 64  # from where 5 / width is within a tenth of it
COLUMNS = ("layer", "layer_index", "elements", "gain", "forward_decades", "backward_decades")
CHANCE = 3.0  # standard deviations that a product of random gains may stray


@dataclass(frozen=True, eq=False)
class Passage:
    """Passage through the weight layers.

    Attributes:
        table: a row a call: layer, decades of signal and gradient (mean over batches), gain of its weights.
        reach: log10 of the gradient at the first layers over that at the last, by batch.
        allowed: decades that chance alone gives it at these widths, three standard deviations.
        variation: share of what the last layer gets that differs between examples; NaN where not known.
        of_inputs: the same of what the first layer gets.
    """

    table: pd.DataFrame
    reach: tuple[float, ...]
    allowed: float
    variation: float
    of_inputs: float

    @property
    def decades(self) -> float:
        """Mean of `reach`; NaN where there is no gradient to compare."""
        return float(np.mean(self.reach)) if self.reach else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `decades` over batches, by Student's t; NaN for fewer than two."""
        if len(self.reach) < 2:
            return math.nan, math.nan
        from scipy import stats  # noqa: PLC0415 # a quarter of a second, needed only here

        count = len(self.reach)
        half = float(stats.t.ppf(0.975, count - 1)) * float(np.std(self.reach, ddof=1)) / math.sqrt(count)
        return self.decades - half, self.decades + half

    @property
    def with_gradient(self) -> list[int]:
        """Places of the calls that a gradient reaches."""
        return [int(place) for place in np.flatnonzero(np.isfinite(self.table["backward_decades"].to_numpy(float)))]

    @property
    def layers(self) -> list[str]:
        """Names of the calls, in order."""
        return list(self.table["layer"])


def passage(training: Training, batches: Sequence[Any]) -> Passage:
    """Measure it at the weights as they are; within `untouched()`."""
    tables, reach = [], []
    ends = _Ends(training.model)
    norms = {name for name, module in training.model.named_modules() if "norm" in type(module).__name__.lower()}
    for place, batch in enumerate(batches):
        training.model.zero_grad(set_to_none=True)
        with ends, quietly():
            rows = probe.weight_layers(training.model, batch, lambda _, each: training.value(each))
        if not len(rows):
            break
        rows = rows[~rows["layer"].str.partition(":")[0].isin(norms)]
        if not len(rows):
            break
        signals = log_signals(rows.assign(case=0))
        tables.append(signals.assign(batch=place))
        back = signals[signals["direction"] == "backward"].sort_values("layer_index")["log"].to_numpy()
        back = back[np.isfinite(back)]
        if len(back) >= 2:
            near = max(1, min(NEIGHBOURS, len(back) // 4))
            reach.append(float(back[:near].max() - back[-near:].max()) / TWICE_LN10)
    if not tables:
        return Passage(pd.DataFrame({name: [] for name in COLUMNS}), (), 0.0, math.nan, math.nan)
    table = _table(pd.concat(tables), training.model)
    spread = sum(_log_variance(int(width)) for width in table["elements"] if width >= 1)
    allowed = CHANCE * math.sqrt(spread) / TWICE_LN10
    return Passage(table, tuple(reach), allowed, ends.variation, ends.of_inputs)


@functools.cache
def _log_variance(width: int) -> float:
    """Of ln of a squared gain: a ReLU layer's of He's weights, the most that a usual activation has."""
    return theory.relu_log_gain(width, 2.0).variance if width < WIDE else 5 / width


def _table(signals: pd.DataFrame, model: nn.Module) -> pd.DataFrame:
    table = signals.pivot_table(index="layer_index", columns="direction", values="log", dropna=False).reset_index()
    names = signals.drop_duplicates("layer_index").set_index("layer_index")["layer"]
    table = table.rename_axis(columns=None).assign(layer=table["layer_index"].map(names))
    elements = signals.drop_duplicates("layer_index").set_index("layer_index")["elements"]
    own = gains(model)
    for name in ("forward", "backward"):
        table[f"{name}_decades"] = table.get(name, np.nan) / TWICE_LN10
    table["elements"] = table["layer_index"].map(elements)
    table["gain"] = table["layer"].str.partition(":")[0].map(own)
    return table[list(COLUMNS)]


def gains(model: nn.Module) -> dict[str, float]:
    """By layer, sqrt(fan-in) times the root mean square of its weights: 1 keeps a linear layer's second moment."""
    found: dict[str, float] = {}
    for layer in weighted(model):
        squares = [weight.detach().double().square().mean().item() * fans(weight)[0] for weight in layer.maps]
        found[layer.name] = math.sqrt(sum(squares) / len(squares)) if squares else math.nan
    return found


def culprits(passage: Passage, *, growing: bool) -> list[str]:
    """The layers to blame: one whose gain stands apart from the others', else all whose gain is off the same way."""
    table = passage.table.assign(layer=passage.table["layer"].str.partition(":")[0]).drop_duplicates("layer")
    table = table[np.isfinite(table["gain"]) & (table["gain"] > 0)]
    if not len(table):
        return []
    logs = np.log(table["gain"].to_numpy())
    apart = np.abs(logs - np.median(logs))
    if apart.max() > math.log(4) and np.sort(apart)[-2:][0] < apart.max() / 2:
        return [str(table["layer"].iloc[int(apart.argmax())])]
    side = logs > 0 if growing else logs < math.log(1.2)
    chosen = table["layer"][side] if side.any() else table["layer"]
    return [str(name) for name in chosen]


class _Ends:
    """Hooks that see what the first and the last weight layer get; the last call of each counts."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for _, module in architecture.layers(model)]
        self.variation, self.of_inputs = math.nan, math.nan
        self._first = True

    def __enter__(self) -> None:
        self._first = True
        self._handles = [layer.register_forward_pre_hook(self._see) for layer in self._layers]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not isinstance(inputs[0], Tensor):
            return
        value = inputs[0]
        if self._first:
            self._first = False
            whole = value if torch.is_floating_point(value) else value.double()
            self.of_inputs = variation(whole)
        elif torch.is_floating_point(value):
            self.variation = variation(value)
