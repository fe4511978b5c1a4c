"""Generators that a step sets to one and the same state: noise, masks and dropout are then the same in every step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from depthgauge.checking.answers import Finding, Kind, Status
from depthgauge.checking.subject import Subject

SEEDS = (11, 12, 13)  # that the generators get before each call
UNUSED = 624  # place in the Mersenne twister's state, right after it was seeded: nothing was drawn since

KINDS = {
    "seeded_in_step": Kind(
        "fault",
        "whatever state a global generator is in before the loss, it is in the same one after it, with several batches,"
        " and numbers were drawn: the loss seeds it anew, and draws the same numbers in every step",
    ),
}


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Count what draws from torch's generators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield which generators a loss seeds."""
    training, batches = subject.training, subject.batches(2)
    states = []
    with training.untouched(), _Draws() as draws:
        for place, seed in enumerate(SEEDS):  # one batch twice, so that a step's own number would tell them apart
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - what a user's code may draw from
            training.value(batches[place % len(batches)])
            states.append(_states())
    same = [name for name in states[0] if len({each.get(name) for each in states}) == 1]
    if not draws.count:
        same = [name for name in same if name != "torch.manual_seed"]
    if same:
        yield Finding(
            "seeded_in_step", Status.LOOK,
            f"the loss seeds a generator anew ({', '.join(same)}): noise, masks and dropout are the same numbers in"
            " every step",
            "seed once, before the training; draw what is to be the same from a generator of its own",
            "each step draws numbers of its own", ("loss", "model"),
        )  # fmt: skip


def _states() -> dict[str, bytes]:
    """The state of each global generator, but of one that nothing was drawn from since it was seeded."""
    python, old = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 - as above
    twister: Any = old["state"]
    found = {"torch.manual_seed": torch.get_rng_state().numpy().tobytes()}
    if python[1][-1] != UNUSED:
        found["random.seed"] = repr(python).encode()
    if twister["pos"] != UNUSED:
        found["np.random.seed"] = twister["key"].tobytes() + repr((twister["pos"], old["gauss"])).encode()
    return found
