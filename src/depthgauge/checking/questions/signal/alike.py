"""Examples whose outputs are one and the same although their inputs differ: nothing of these reaches the output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import architecture, initialization, nested, seeding
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.subject import Subject
from depthgauge.seeding import Purpose
from depthgauge.workload import Training

SHARE = 0.25  # of a batch's examples
FEWEST = 4  # of them
GAIN = 2**0.5  # of the weights that are drawn in place of its own: units that are off by chance are others then


@dataclass
class _Seen:
    """One call of the model: what it got, what each weight layer got, and what it returned; a row an example."""

    given: list[Tensor] = field(default_factory=list)
    layers: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield that a part of the examples is not seen, with the weights as they are and with others."""
    training, batch = subject.training, subject.seen.batch
    if isinstance(training.model, torch.jit.ScriptModule) or not subject.fits(4, "examples that look alike"):
        return
    with training.untouched():
        seen = _looked(training, batch)
        same = _equal_rows(seen)
        if same is None or not _differ(seen.given, same):
            return
        with torch.no_grad():
            draws = initialization.gaussian(GAIN)
            seeding.seed_globals(0, Purpose.WEIGHTS)
            initialization.apply(training.model, draws)
        again = _equal_rows(_looked(training, batch), drawn=True)
    if again is None or not torch.equal(same, again):
        return
    names = [name for name, rows in seen.layers.items() if bool((rows[same] == rows[same][:1]).all())]
    before = [name for name in seen.layers if name not in names]
    where = tuple(dict.fromkeys((*names[:1], *before[-1:], "model")))
    count, of = int(same.sum()), len(same)
    place = f"; what `{names[0]}` gets is the same for them" if names else ""
    yield Finding(
        "examples_alike", Status.BROKEN,
        f"{count} of {of} examples have the very same output although their inputs differ{place}: nothing of their"
        " inputs reaches it",
        "look at what is taken of a sequence or a mask: the last place of a padded sequence is padding (take the last"
        " state, or the place at its length)",
        "each example's output depends on its inputs", where, Measure("share of examples alike", count / of),
    )  # fmt: skip


def _looked(training: Training, batch: Any) -> _Seen:
    """What a pass shows; the hooks are taken off again."""
    seen, model = _Seen(), training.model
    with ExitStack() as hooks:
        for name, layer in architecture.layers(model):
            if not isinstance(layer, torch.jit.ScriptModule):
                hooks.callback(layer.register_forward_pre_hook(_entered(seen, name)).remove)
        hooks.callback(model.register_forward_hook(_returned(seen), with_kwargs=True).remove)
        training.value(batch)
    return seen


def _entered(seen: _Seen, name: str) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim() > 1 and not args[0].is_nested:
            seen.layers[name] = args[0].detach().flatten(1)

    return hook


def _returned(seen: _Seen) -> Any:
    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        try:
            scores = nested.scores(output).detach()
        except nested.NoTensorError:
            return
        if scores.dim() == 2 and scores.shape[1] > 1 and seen.output is None:
            rows = [each.detach() for _, each in nested.tensors((args, kwargs))]
            seen.output = scores
            seen.given = [each.reshape(len(each), -1) for each in rows if each.dim() and len(each) == len(scores)]
            seen.layers = {name: each for name, each in seen.layers.items() if len(each) == len(scores)}

    return hook


def _equal_rows(seen: _Seen, *, drawn: bool = False) -> Tensor | None:
    """Which examples have the output that most have; None where these are few or all.

    At an activation's end none are alike, but with weights that were drawn, whose biases are 0.
    """
    if seen.output is None or len(seen.output) < 2 * FEWEST:
        return None
    rows, of, counts = torch.unique(seen.output, dim=0, return_inverse=True, return_counts=True)
    place = counts.argmax()
    count, row = int(counts[place]), rows[place]
    at_end = not drawn and bool(torch.isin(row, row.new_tensor([0.0, 1.0, -1.0])).any())
    if not max(FEWEST, SHARE * len(of)) <= count < len(of) or at_end:
        return None
    same: Tensor = of == place
    return same


def _differ(given: list[Tensor], same: Tensor) -> bool:
    """Tell whether these examples have inputs of their own, each."""
    return any(len(torch.unique(each[same], dim=0)) == int(same.sum()) for each in given)
