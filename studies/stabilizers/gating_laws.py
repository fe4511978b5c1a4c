"""Theory of gates and shortcuts at initialization, and how far measurements are from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import stats, theory
from depthgauge.frames import groups
from depthgauge.parts import Answer
from depthgauge.questions import Question, spelled
from depthgauge.verdict import Claim, Sentence

NEAR = 1.25  # margin of a reach over the predicted
STACKS = ("plain", "residual", "scaled residual")
SLOPE = 0.02  # margin of ln of the squared gradient, a layer


def growth(kind: str, gain: float, depth: int) -> float:
    """Theory's ln of the squared gradient's growth through a stack of infinite width."""
    each = {"plain": gain**2, "residual": 1 + gain**2, "scaled residual": 1 + gain**2 / depth}[kind]
    return depth * math.log(each)


def _bias(kind: str, length: int) -> np.ndarray[Any, Any]:
    return theory.chrono_biases(length) if "chrono" in kind else np.array([1.0 if "bias" in kind else 0.0])


def reaches(reached: pd.DataFrame, wide: pd.DataFrame, claims: tuple[Claim, Claim]) -> Iterator[Answer]:
    """The gradient by steps back, and its reach against the product of the gates.

    Args:
        reached: one row a network: its kind and length.
        wide: mean squares of its gradient, a column a step back.
        claims: that theory predicts it, and what else it bears on.
    """
    asked, lines = {}, []
    back = np.array([0, *(k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 499) if k in wide.columns)])
    for kind, own in groups(reached, "kind"):
        curves = np.sqrt(wide.loc[own.index].to_numpy())
        length = int(own["length"].max())
        law = theory.gate_decay(_bias(kind, length), np.arange(length)) if "LSTM" in kind else None
        if law is not None:
            ratio = np.array([theory.reach(curve) for curve in curves]) / theory.reach(law)
            asked[kind,] = stats.against(ratio, 1.0, log=True, margin=NEAR)
        for k in back:
            middle = {name: float(each[0]) for name, each in stats.band(curves[:, [k]]).items()}
            lines.append({
                "network": kind, "back": int(k), "n": len(own), **middle,
                "predicted": math.nan if law is None else law[k],
                "reach": float(np.median([theory.reach(curve) for curve in curves])),
            })  # fmt: skip
    yield "reach", pd.DataFrame(lines)
    question = Question.of("reach_law", ("network",), asked, label="{network}", counted="networks")
    if question:
        yield question.table()
        yield question.prediction(claims[0], "reaches", within=f"a factor of {NEAR:g}", unit="measured over predicted")
    yield from _told(pd.DataFrame(lines), claims)


def _told(lines: pd.DataFrame, claims: tuple[Claim, Claim]) -> Iterator[Sentence]:
    steps = lines.groupby("network")["reach"].first()
    if not {"LSTM", "LSTM, bias 1", "RNN"} <= set(steps.index):
        return
    text = (
        f"At initialization the gradient falls to 1/e within {steps['RNN']:.1f} steps in an RNN of PyTorch's default "
        f"draws, {steps['LSTM']:.1f} in an LSTM's cell, {steps['LSTM, bias 1']:.1f} with forget biases of 1, and "
        f"{steps.get('chrono LSTM', math.nan):.0f} with chrono biases; in an orthogonal RNN within "
        f"{steps.get('orthogonal RNN', math.nan):.0f}"
    )
    identity = lines[lines["network"] == "identity RNN"]
    if len(identity):
        last = identity.sort_values("back").iloc[-1]
        text += f"; in one of ReLUs that starts at the identity {last['median']:.2f} is left after {last['back']} steps"
    yield Sentence(f"{text}.", figure="gate_reach", claims=(claims[0].id, claims[1].id))


def growths(stacks: pd.DataFrame, claims: tuple[Claim, Claim]) -> Iterator[Answer]:
    """Growth of the gradient through stacks against theory.

    Args:
        stacks: one row a stack: kind, gain, depth, and ln of the squared gradient as `value`.
        claims: that theory predicts it, and what else it bears on.
    """
    asked, lines = {}, []
    for (kind, gain, depth), own in groups(stacks, ["kind", "gain", "depth"]):
        law = growth(kind, float(gain), int(depth))
        asked[kind, gain] = stats.against((own["value"] / depth).to_numpy(), law / int(depth), margin=SLOPE)
        mean = {
            name.replace("value_", ""): each
            for name, each in spelled("value", stats.mean(own["value"].to_numpy())).items()
        }
        lines.append({"stack": f"{kind}, x {gain:g}", "n": len(own), "depth": int(depth), **mean, "predicted": law})
    yield "off_critical", pd.DataFrame(lines)
    question = Question.of("off_critical_law", ("kind", "gain"), asked, label="{kind}, weights x {gain:g}")
    yield question.table()
    yield question.prediction(
        claims[0], "growths", within=f"{SLOPE:g} a layer", unit="ln of the squared gradient a layer"
    )
    yield from _sizes(question, int(stacks["depth"].max()), claims)


def _sizes(question: Question, depth: int, claims: tuple[Claim, Claim]) -> Iterator[Sentence]:
    """What a block makes of the gradient's size, which is the root of its square, and what it does when critical."""
    each = {key: math.exp(c.effect.value / 2) for key, c in question.members.items()}
    gains = list(dict.fromkeys(gain for _, gain in each))
    if not {(kind, gain) for kind in STACKS for gain in gains} <= set(each):
        return
    told = [" and ".join(f"{each[kind, gain]:.2f}" for gain in gains) for kind in STACKS]
    critical = [f"{math.exp(growth(kind, 1.0, depth) / depth / 2):.2f}" for kind in STACKS]
    yield Sentence(
        f"With weights {' and '.join(f'{gain:g}' for gain in gains)} times He's, each of {depth} ReLU layers makes the "
        f"gradient {told[0]} times as large in a plain stack, {told[1]} times with shortcuts, and {told[2]} times with "
        f"branches divided by the square root of the depth; at He's weights theory has {critical[0]}, {critical[1]} "
        f"and {critical[2]}.",
        figure="off_critical", claims=(claims[0].id, claims[1].id),
    )  # fmt: skip
