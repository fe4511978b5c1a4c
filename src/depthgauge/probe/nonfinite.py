"""The first value of a record that is not finite, and the rows that led to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class NonFinite:
    """The first tensor of a record with a value that is not finite; as a string, a sentence and the table of its chain.

    Attributes:
        step: the step.
        layer: the module's qualified name, `""` for the module itself.
        direction: `activation`, `activation_gradient`, `weight`, `weight_gradient` or `update`.
        parameter: name of the parameter; None for activations and their gradients.
        output: place in a structured output, or None.
        kind: `inf` where any value is infinite, which explains a NaN beside it, else `nan`.
        weights: names of parameters that were not finite before an activation was, as far as the step has shown.
        chain: the rows up to this one, which is the last; columns as in `Record.to_frame`.
    """

    step: int
    layer: str
    direction: str
    parameter: str | None
    output: str | None
    kind: str
    weights: tuple[str, ...]
    chain: pd.DataFrame = field(repr=False)

    @classmethod
    def of(cls, chain: pd.DataFrame, weights: tuple[str, ...]) -> NonFinite:
        """The tensor that a chain of rows ends with."""
        last = chain.iloc[-1]
        parameter, output = (name if isinstance(name, str) else None for name in (last["parameter"], last["output"]))
        infinite = last["positive_infinities"] + last["negative_infinities"] > 0
        kind = "inf" if infinite else "nan"
        return cls(int(last["step"]), last["layer"], last["direction"], parameter, output, kind, weights, chain)

    @property
    def row(self) -> pd.Series[float]:
        """The tensor's row in the record."""
        return self.chain.iloc[-1]

    def __str__(self) -> str:
        chain = self.chain
        lost = chain["nans"] + chain["positive_infinities"] + chain["negative_infinities"]
        place = chain["layer"].where(chain["layer"] != "", "(module)")
        for name in ("parameter", "output"):
            place += ("." + chain[name]).fillna("")
        table = chain[["step", "direction", "min", "max"]].assign(not_finite=lost / chain["count"].clip(1))
        table.insert(1, "tensor", place)
        sentence = (
            f"step {self.step}: the {self.direction.replace('_', ' ')} of {place.iloc[-1]!r} is the first tensor"
            f" that is not finite ({lost.iloc[-1]} of {self.row['count']} values, {self.kind})"
        )
        if self.weights:
            sentence += f"; not finite before: {', '.join(self.weights[:3])}"
        return f"{sentence}\n{table.to_string(index=False, float_format='{:.3g}'.format)}"
