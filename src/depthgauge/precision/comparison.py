"""The first layer at which two versions of a computation differ by more than rounding explains.

    comparison = precision.compare(model, torch.compile(model), batch)
    comparison.same, comparison.first       # True, None; or False, "blocks.3.attention"
    comparison.to_frame()                   # a row for each call of each layer, forward and then backward

The sides are modules whose submodules have the same names: of two dtypes, on two devices, of other kernels, eager and
compiled, with another attention, with a batch that is split. One side, that of the coarser dtype, runs as it is. The
other is fed, at every boundary of a layer, the values that the first one had there, and on the way back its gradients.
So each layer is judged by what it computes itself, on inputs that are the same, and no difference is inherited: a row
tells of the layer's own operations, those of a composite being what it does around and between its children.

How large a difference rounding can make is predicted (`band`) from the number of roundings and the lengths of the sums
of the layer, which are counted; from how its results answer to relative changes of inputs and parameters, which is
measured by a few more runs of the second side; and from how far they move where every operator of the layer rounds
otherwise, by a few more runs of both (`noise`). The last one matters where operators cancel: a layer that amplifies
rounding so much that nothing can be told has a wide `band`.

A wrong weight is looked for in all examples together: the differences of a layer's outputs are projected on its
parameters, as in the backward pass of their squares; the more examples there are, the smaller a fault is seen.

Parameters and buffers of the same name are compared besides: a few values that differ by more than two units in the
last place, among many that agree, are a fault of their layer, however little its results show of it.

A submodule that only one side has, or that runs inside compiled code, belongs to the layer around it; of a compiled
model outputs, gradients of inputs and those of parameters are compared. Calls that are not equal in number are compared
where their outputs, joined along the first dimension, have the same shape. Inputs that one side hands to a layer in
another order are no difference where the layer's output is the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from depthgauge.precision import checks
from depthgauge.precision.band import Judgement
from depthgauge.precision.feeding import Feeding
from depthgauge.precision.parameters import judged
from depthgauge.precision.passage import Call, Direction, Edge, Pinned, Side, compiled, visible
from depthgauge.probe.hooks import paused

LEVEL = 1e-3
"""Probability that one comparison finds a difference where there is only rounding, as the band predicts it."""

COLUMNS = ("layer", "direction", "error", "band", "size", "ulps", "call", "tensor")


@dataclass(frozen=True)
class Comparison:
    """Two versions of a computation, layer by layer.

    Attributes:
        rows: one for each call of each layer, in order of execution, forward before backward.
    """

    rows: tuple[Mapping[str, Any], ...]

    @property
    def same(self) -> bool | None:
        """True where every difference lies inside the band, None where nothing could be compared."""
        return all(row["size"] <= 1 for row in self.rows) if self.rows else None

    @property
    def first(self) -> str | None:
        """Name of the first layer in order of execution that differs beyond the band; "" is the module itself."""
        return next((row["layer"] for row in self.rows if row["size"] > 1), None)

    def to_frame(self) -> pd.DataFrame:
        """One row for each call of each layer, in order of execution.

        Columns: `layer`, its name as in `named_modules`; `direction`: `forward`, its outputs and what it hands to its
        children, or `backward`, the gradients of its inputs and parameters, and what it hands back to its children;
        `error` and `band`, relative to the root mean square of the tensor: the deviation that is the largest in units
        of its band, and that band (see `band.Judgement`); `size`, the one over the other; `ulps`; `call`, how many
        calls of the layer came before; `tensor`, the one that the row shows.
        """
        return pd.DataFrame(list(self.rows), columns=list(COLUMNS))

    def __str__(self) -> str:
        if not self.rows:
            return "nothing could be compared"
        beyond = next((row for row in self.rows if row["size"] > 1), None)
        if beyond is None:
            worst = max(row["size"] for row in self.rows)
            return f"the same within rounding: the largest difference is {worst:.2g} of its band"
        name = beyond["layer"] or "the module itself"
        far = f"{beyond['size']:.3g} times the band, {beyond['ulps']:.3g} ulps"
        return f"{name} differs {beyond['direction']}: {far} ({beyond['tensor']})"


_NOTHING_ALIKE = Judgement(math.inf, 0.0, math.inf)


def compare(a: nn.Module, b: nn.Module, batch: Any, *, seed: int = 0, parameters: bool = True) -> Comparison:
    """Find the first layer at which two versions of a computation differ by more than rounding explains.

    Each run begins with what the side had before; both are left as they were: parameters, gradients, buffers, other
    attributes, random states, hooks and modes. A record that is open (`probe.track`) sees nothing. The memory is that
    of three times the values and gradients that cross the layers' boundaries, of ten times for layers of several
    operators. Sparse tensors are compared as dense ones, complex ones by their parts.

    Outputs of another structure or shape differ, and so does a parameter that gets a gradient on one side alone, though
    both ask for one; outputs without floating-point numbers are not compared.

    Args:
        a: one side.
        b: the other, whose modules have the same names.
        batch: a tensor, a tuple of arguments, or a mapping of arguments by name; floating-point tensors are cast to
            each side's own dtype, complex ones to that of its parts where it is float32 or float64.
        seed: of the cotangent that the backward pass starts from, of the changes that measure sensitivities, and of
            what the modules draw.
        parameters: whether parameters and buffers are compared besides.

    Raises:
        ValueError: modules or a batch without values, as lazy ones, empty ones and those on the meta device; modules
            in eight bits.
        TypeError: what is no module or no batch, a batch that a module does not take, sparse and nested tensors,
            modules of torch.jit.
        Exception: what the modules raise on the batch.
    """
    checks.check_sides(a, b, batch)
    with torch.inference_mode(False), torch.enable_grad(), paused():  # a caller's would leave the backward pass out
        return _compared(a, b, batch, seed, parameters=parameters)


def _compared(a: nn.Module, b: nn.Module, batch: Any, seed: int, *, parameters: bool) -> Comparison:
    versions = [Side.of(module, batch, seed) for module in (a, b)]
    seen = [visible(module) for module in (a, b)]
    names = [name for name in seen[0] if name in seen[1]]
    surveys = [side.survey({name: own[name] for name in names}) for side, own in zip(versions, seen, strict=True)]
    fitting = [name for name in names if _fits(surveys[0].calls(name), surveys[1].calls(name))]
    if fitting != names:
        names = fitting
        surveys = [side.survey({name: own[name] for name in names}) for side, own in zip(versions, seen, strict=True)]
    # The coarser one is recorded: the other can hold its values.
    coarse = max((0, 1), key=lambda i: (surveys[i].epsilon, compiled(versions[i].module), i))
    whole = None
    if not names:
        inside = versions[1 - coarse].survey(visible(versions[1 - coarse].module, eager=True))
        whole = inside.whole()
    recorded, fed = (
        Pinned(versions[i], {name: seen[i][name] for name in names}, surveys[i]) for i in (coarse, 1 - coarse)
    )
    rows, arranged = _Rows(), set()
    spacings = (max(getattr(survey, name) for survey in surveys) for name in ("epsilon", "tiny"))
    for layer, place, judgement in judged(a, b, *spacings):
        if judgement is None:
            arranged.add((layer, place))
        elif parameters and (surveys[0].calls(layer) or layer not in names):
            rows.add(Call(layer, 0), "forward", judgement, f"{place} itself")
    found, strayed = _judged(Feeding(recorded, fed, whole), rows, arranged)
    if strayed:  # inputs that differ, and yet the same output of the layer: weights and inputs in another order
        again, _ = _judged(Feeding(recorded, fed, whole, strayed), rows, arranged)
        return again if again.same else found
    return found


def _fits(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> bool:
    """Whether the calls' outputs are of the same shapes, by themselves or joined along the first dimension."""
    return bool(a) and (a == b or _joined(a) == _joined(b) is not None)


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    if len({shape[1:] for shape in shapes if shape}) != 1 or () in shapes:
        return None
    return sum(shape[0] for shape in shapes), *shapes[0][1:]


class _Rows:
    """The worst tensor of each call of each layer, in order of execution."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Call, Direction], dict[str, Any]] = {}

    def add(self, call: Call, direction: Direction, judgement: Judgement, tensor: str, *, last: bool = False) -> None:
        """Count a tensor; with `last` the call's row stands behind those that are there."""
        row = {
            "layer": call.layer, "direction": direction, "error": judgement.error, "band": judgement.band,
            "size": judgement.size, "ulps": judgement.ulps, "call": call.number, "tensor": tensor,
        }  # fmt: skip
        before = self._rows.get((call, direction), row)
        if last:
            self._rows.pop((call, direction), None)
        worse = max(before, row, key=lambda each: each["size"])
        self._rows[call, direction] = {**worse, "ulps": max(before["ulps"], row["ulps"])}

    def copy(self) -> _Rows:
        """The same rows, to go on from."""
        other = _Rows()
        other._rows = dict(self._rows)
        return other

    def in_order(self) -> tuple[Mapping[str, Any], ...]:
        """Forward before backward."""
        return tuple(sorted(self._rows.values(), key=lambda row: row["direction"] == "backward"))


def _judged(
    feeding: Feeding, before: _Rows, arranged: Collection[tuple[str, str]]
) -> tuple[Comparison, frozenset[str]]:
    """The comparison, and the layers whose inputs differ beyond the band."""
    feeding.run()
    rows, strayed = before.copy(), set()
    level = LEVEL / max(len(feeding.own), 1)
    for (edge, direction), maker in feeding.makers.items():
        if edge.kind == "parameter" and (edge.layer, edge.place) in arranged:
            continue
        # A layer's row stands where its last result was made; gradients of parameters come at the end.
        judgement = feeding.judge((edge, direction), level)
        rows.add(maker, direction, judgement, _named(edge, direction), last=edge.kind != "parameter")
        if (edge.kind, direction) == ("in", "forward") and judgement.size > 1:
            strayed.add(edge.layer)
    if apart := feeding.outputs_apart():
        rows.add(Call("", 0), "forward", _NOTHING_ALIKE, apart, last=True)
    for edge in feeding.one_sided():
        rows.add(Call(edge.layer, 0), "backward", _NOTHING_ALIKE, f"gradient of {edge.place}, of one side alone")
    return Comparison(rows.in_order()), frozenset(strayed)


def _named(edge: Edge, direction: Direction) -> str:
    if edge.kind == "parameter":
        return f"outputs along {edge.place}" if direction == "forward" else edge.place
    whose = f"{edge.kind}put {edge.place}".strip()
    return f"{whose} of {edge.layer}" if edge.layer else whose
