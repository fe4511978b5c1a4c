"""Dropout that is called as a function and does not know that the model is in evaluation mode."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.parameters import of_a_package
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import listed
from depthgauge.restoring import random_states_kept

_DROPS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"}
)
_ATTENTION = "scaled_dot_product_attention"
_MEANT = re.compile(r"\b(training|train)\s*=\s*True\b|,\s*True\s*[,)]")  # in the call itself: noise that is wanted

KINDS = {
    "drops_in_eval": Kind(
        "fault",
        "with the model in evaluation mode a module of the user's own calls dropout as a function that still drops,"
        " or attention with a dropout_p, and the call does not say training=True in so many words",
    ),
}


class _Watch(TorchFunctionMode):
    """Note the modules in evaluation mode within which values are dropped, with the rate."""

    def __init__(self, within: Within) -> None:
        super().__init__()
        self._within = within
        self.found: dict[str, float] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if (name in _DROPS or name == _ATTENTION) and (called := self._within.innermost):
            place, module = called
            rate = _rate(name, args, given)
            if rate > 0 and not module.training and not of_a_package(module) and not _meant(sys._getframe(1)):
                self.found[place] = max(rate, self.found.get(place, 0.0))
        return func(*args, **given)


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what drops values although the model is in evaluation mode."""
    training = subject.training
    if isinstance(training.model, torch.jit.ScriptModule) or not subject.fits(
        2, "what drops values in evaluation mode"
    ):
        return
    with training.untouched(), random_states_kept(), Within(training.model) as within:
        watch = _Watch(within)
        training.model.eval()
        try:
            with watch:
                training.value(nested.first(subject.seen.batch, 8))
        except Exception:  # noqa: BLE001 - a loss may insist on training mode, or on as many examples
            return
    if watch.found:
        rate = max(watch.found.values())
        yield Finding(
            "drops_in_eval", Status.LOOK,
            f"dropout of {rate:g} at {listed(watch.found)} goes on in evaluation mode: predictions lose as many values"
            " as in training",
            "hand over training=self.training (dropout_p=self.p if self.training else 0.0), or use nn.Dropout;"
            " say training=True where it is wanted",
            "evaluation uses all values", tuple(dict.fromkeys((*watch.found, "model"))),
            Measure("dropout rate in evaluation", rate),
        )  # fmt: skip


def _rate(name: str, args: Any, given: Any) -> float:
    """The rate of a call that drops; 0 of one that does not."""
    if name == _ATTENTION:
        rate = given.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        return float(rate) if isinstance(rate, int | float) else 0.0
    rate = given.get("p", args[1] if len(args) > 1 else 0.5)
    active = given.get("training", given.get("train", args[2] if len(args) > 2 else True))
    return float(rate) if active and isinstance(rate, int | float) else 0.0


def _meant(frame: FrameType | None) -> bool:
    """Tell whether the user's call says in so many words that it is to drop always."""
    while frame is not None and f"{torch.__path__[0]}" in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return False
    places = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    first, last = (places[0] or frame.f_lineno), (places[1] or frame.f_lineno)
    lines = "".join(linecache.getline(frame.f_code.co_filename, line) for line in range(first, last + 1))
    return bool(_MEANT.search(lines))
