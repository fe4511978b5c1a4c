"""Trials of the first steps with one thing changed, where nothing that a pass shows is suspicious."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from depthgauge import architecture, nested
from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.questions.signal import cutting, remedies, skips, turned
from depthgauge.checking.questions.signal.remedies import Trial
from depthgauge.checking.questions.signal.scores import Scaled, spread_of_scores
from depthgauge.checking.steps import losses
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import MOST_WHERE, listed
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.workload import Training

LITTLE = 0.05  # of the loss at the start: own steps that bring it down no farther are held against a new draw
BEGUN = 20  # own steps, from which on that says something
FAR = 4.0  # times the loss of scores of unit size, with which a classification begins where scores are too large
WAY = 0.5  # of the way down with blocks that hand on once what they get
APART = 2.0  # times a parameter's size that its layer would have drawn, or a half of it


class _Trials:
    """Trials of one training, and the steps from its weights as they are, which are made once."""

    def __init__(self, subject: Subject) -> None:
        self.training = subject.training
        self.batches = subject.batches(4)
        self._fits = subject.fits
        self.steps = remedies.STEPS
        self._plain: dict[int, Trial] = {}

    def fits(self, what: str, times: int = 1) -> bool:
        """Tell whether there is time for the steps as they are and with a change, so many times as many."""
        steps = 2 * times * self.steps
        return self._fits(2 * steps, what, 0.6, loads=steps, copies=4)

    def plain(self, times: int = 1) -> Trial:
        """The steps from the weights as they are."""
        if times not in self._plain:
            self._plain[times] = remedies.trial(self.training, self.batches, times * self.steps, None)
        return self._plain[times]

    def with_(
        self,
        name: str,
        lay: Callable[[nn.Module], None] | None,
        inside: AbstractContextManager[object] | None = None,
        times: int = 1,
    ) -> Trial:
        """The same steps with one change."""
        with inside or nullcontext():
            return remedies.trial(self.training, self.batches, times * self.steps, lay, name=name)

    def tried(self, changed: Trial, times: int = 1) -> Tried:
        """Both losses, for a finding."""
        plain = self.plain(times)
        return Tried(changed.name, f"loss after {plain.steps} steps", plain.ended, changed.ended)


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what a trial shows; the first that says something is all."""
    if subject.training.optimizer is None:
        return
    trials = _Trials(subject)
    for part in (_cut, _multiplied, _dropped, _far, _drawn):
        found = list(part(subject, trials))
        yield from found
        if found:
            return


def _says(changed: Trial, plain: Trial) -> str:
    return (
        f"with {changed.name} the loss after {plain.steps} steps is {changed.ended:.3g} in place of {plain.ended:.3g}"
    )


def _cut(_subject: Subject, trials: _Trials) -> Iterator[Finding]:
    """A recurrence that detaches its state in each step."""
    with trials.training.untouched():
        chain, inside = cutting.chain(trials.training, trials.batches[0])
    if chain < cutting.CUT:
        return
    for times in (1, remedies.LONGER):
        if not trials.fits("the steps with the gradient of a cut state let through", times):
            return
        whole = trials.with_("the gradient let through", None, cutting.Through(), times)
        if not remedies.better(whole, trials.plain(times)):
            continue
        text = f"a state is cut out of the graph {chain} times in a row in one pass, so that no step learns what the"
        text += f" next ones need; {_says(whole, trials.plain(times))}"
        yield Finding("cut_state", Status.BROKEN, text, "detach the state between batches, not between steps",
                      "what came some steps before can be learnt to be kept",
                      tuple(dict.fromkeys((*inside, "model")))[:MOST_WHERE],
                      Measure("states without gradient in a row", float(chain)),
                      trials.tried(whole, times))  # fmt: skip
        return


def _multiplied(_subject: Subject, trials: _Trials) -> Iterator[Finding]:
    """Blocks that hand on a multiple of what they get."""
    blocks = skips.multiplying(trials.training, trials.batches[0])
    if not blocks or not trials.fits("the steps with blocks that hand on once what they get"):
        return
    once = trials.with_(f"x handed on once by {len(blocks)} blocks", lambda model: skips.laid_once(model, blocks))
    if remedies.lower(once, trials.plain()) and remedies.way(once, trials.plain()) < WAY:
        product = math.prod(blocks.values())
        text = (
            f"{len(blocks)} blocks in a row multiply what they get by {np.median(list(blocks.values())):.2g} each, by"
        )
        text += f" {product:.2g} together, before they add to it; {_says(once, trials.plain())}"
        yield Finding("exploding", Status.LOOK, text, f"let {listed(blocks)} return x + f(x)", "each block counts",
                      (*tuple(blocks)[:MOST_WHERE - 1], "model"), Measure("what is handed on, over what came in",
                      product), trials.tried(once))  # fmt: skip


def _dropped(subject: Subject, _trials: _Trials) -> Iterator[Finding]:
    """Dropout whose rate is turned round: the share that was to be kept is dropped."""
    return turned.findings(subject)


def _far(subject: Subject, trials: _Trials) -> Iterator[Finding]:
    """Scores of a classification that begin so large that own steps only bring them down."""
    begun, term = subject.begun, next(iter(subject.seen.graph.terms), None)
    if begun is None or not begun.before or not begun.after or begun.steps < BEGUN or term is None:
        return
    if len(subject.seen.graph.terms) != 1 or not term.is_all_of(subject.seen.loss):
        return
    size = spread_of_scores(trials.training, trials.batches[0])
    if not size > FAR / 2:
        return
    with trials.training.untouched(), Scaled(1 / size):
        seed_globals(0, Purpose.DROPOUT)
        near = float(np.mean(losses(trials.training, trials.batches)))
    start, end = float(np.mean(begun.before)), float(np.mean(begun.after))
    if not start > FAR * near > 0 or not end > near or not trials.fits("the steps with scores of unit size"):
        return
    scaled = trials.with_("scores of unit size", None, Scaled(1 / size))
    if remedies.better(scaled, trials.plain()) and remedies.way(scaled, trials.plain()) < remedies.HELD:
        layers = [name for name, _ in architecture.layers(trials.training.model)]
        text = (
            f"scores begin with a standard deviation of {size:.2g}, and the loss at {start:.3g}, where scores of unit"
        )
        text += f" size have {near:.3g}; {_says(scaled, trials.plain())}"
        yield Finding("scale", Status.BROKEN, text, "draw smaller weights, or divide what is added up or multiplied on "
                      "the way to the scores by its number", "the loss begins where all classes are as likely",
                      tuple(dict.fromkeys(("model", *layers[::-1])))[:MOST_WHERE],
                      Measure("standard deviation of the scores", size), trials.tried(scaled))  # fmt: skip


# -- a new draw --------------------------------------------------------------------------------------------------------


def _drawn(subject: Subject, trials: _Trials) -> Iterator[Finding]:
    """Layers whose own class draws weights from which the same steps get much further."""
    begun = subject.begun
    if begun is None or not begun.before or not begun.after or begun.steps < BEGUN:
        return
    start, end = float(np.mean(begun.before)), float(np.mean(begun.after))
    if not math.isfinite(start) or start - end > LITTLE * abs(start):
        return
    apart = _apart(trials.training)
    if not apart or not trials.fits("the steps with layers that are drawn anew", remedies.LONGER):
        return
    new = trials.with_("the weights that torch draws", lambda model: _draw(model, apart))
    if not remedies.better(new, trials.plain()) or remedies.way(new, trials.plain()) >= remedies.HELD:
        return
    if remedies.way(new, trials.plain(remedies.LONGER)) >= remedies.CAUGHT_UP:
        return
    text = f"the numbers of {listed(apart)} have another size than those that torch draws; {_says(new, trials.plain())}"
    text += f", and {trials.plain(remedies.LONGER).ended:.3g} after {remedies.LONGER} times as many"
    yield Finding("scale", Status.BROKEN, text, f"leave {listed(apart)} as torch draws it (reset_parameters())",
                  "the loss falls from the first steps on", tuple(apart)[:MOST_WHERE],
                  Measure("way down over that from a new draw", remedies.way(new, trials.plain())),
                  trials.tried(new))  # fmt: skip


def _settable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Torch's own layers of linear maps that train, and that their class can draw anew."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
    for name, module in model.named_modules():
        own = architecture.own_parameters(module)
        if not isinstance(module, kinds) or not own or hasattr(module, "parametrizations"):
            continue
        if all(each.requires_grad and bool(each.detach().any()) for each in own.values() if each.dim() > 1):
            yield name, module


def _apart(training: Training) -> list[str]:
    """Names of layers of which a parameter is twice as large as its class draws it, or half as large."""
    found: list[str] = []
    with training.untouched(), torch.no_grad():
        for name, module in _settable(training.model):
            before = {own: each.detach().clone() for own, each in architecture.own_parameters(module).items()}
            with random_states_kept():
                module.reset_parameters()  # type: ignore[operator]  # all of these have it
            for own, each in architecture.own_parameters(module).items():
                had, has = (nested.real(value).double().square().mean().sqrt().item() for value in (before[own], each))
                small = each.dim() > 1 and had * APART < has
                if each.numel() > 1 and has > 0 and (had > APART * has or small):
                    found.append(name)
                    break
    return found


def _draw(model: nn.Module, names: Sequence[str]) -> None:
    with random_states_kept():
        seed_globals(0, Purpose.MODULES)
        for name in names:
            module: Any = model.get_submodule(name)
            module.reset_parameters()
