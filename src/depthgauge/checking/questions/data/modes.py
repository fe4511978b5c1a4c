"""Layers that work otherwise in training than in evaluation: dropout and batch normalization."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from depthgauge.architecture import own_parameters
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.passing import DROPS, NORMS, Passed
from depthgauge.checking.words import listed, plural
from depthgauge.workload import Training

HEAVY = 0.95  # what is kept is multiplied by 1 / (1 - p) = 20, so that its noise is 4.4 times the signal
MOST_DROPPED = 0.9  # of all numbers in one pass of a module of the user's own: chance leaves 3 in 64 or so of HEAVY
FEW_VALUES = 2  # normalized by two values, a channel is their sign: +1 and -1, whatever they were

KINDS = {
    "eval_mode": Kind(
        "fault",
        "the model is in evaluation mode in the training's own pass, or is left in it, although it holds dropout, or"
        " batch normalization that trains",
    ),
    "frozen_norm": Kind("property", "some batch normalizations are in evaluation mode, while the model trains"),
    "heavy_dropout": Kind(
        "fault",
        f"a dropout rate is {HEAVY} or more, of a layer or a function, so that the noise is 4.4 times the signal; or a"
        f" module of the user's own sets {MOST_DROPPED:.0%} of what it gets to 0 and multiplies the rest",
    ),
    "small_norm_batch": Kind(
        "fault",
        f"batch normalization has {FEW_VALUES} values a channel or fewer: two become -1 and +1, whatever they were",
    ),
}


def findings(training: Training, passed: Passed) -> Iterator[Finding]:
    """Yield what is found about modes."""
    modules = dict(training.model.named_modules())
    drops = [name for name in passed.training if isinstance(modules[name], DROPS) and _rate(modules[name]) > 0]
    norms = [name for name in passed.training if isinstance(modules[name], NORMS)]
    live = [name for name in norms if _trains(modules[name])]
    switching = [*drops, *live]
    off = [name for name in switching if not passed.training[name]]
    began = training.model.training
    if switching and len(off) == len(switching) and not (began and passed.called):
        yield _evaluated(modules, drops, live, began)
    elif switching and began and not passed.left:
        yield _left(modules, drops, live)
    elif frozen := [name for name in norms if not passed.training[name]]:
        yield Finding(
            "frozen_norm", Status.FINE,
            f"{len(frozen)} of {len(norms)} batch normalizations are in evaluation mode: they use stored statistics",
            where=tuple(frozen),
        )  # fmt: skip
    rates = {name: _rate(modules[name]) for name in drops if passed.training[name]}
    own = {name: each for name, each in passed.shares.items() if each >= MOST_DROPPED}
    yield from _heavy(passed.rates | rates, own)
    yield from _small(passed, [name for name in norms if passed.training[name]])


def _left(modules: dict[str, nn.Module], drops: list[str], norms: list[str]) -> Finding:
    return Finding(
        "eval_mode", Status.BROKEN,
        f"the loss leaves the model in evaluation mode: from the second step on {_parts(drops, norms)} no longer work"
        " as in training",
        "call model.train() in the loss where it has called model.eval()",
        "dropout and batch normalization work as in the model's definition",
        ("model", "loss", *(each for each in (*drops, *norms) if each in modules)),
    )  # fmt: skip


def _parts(drops: list[str], norms: list[str]) -> str:
    counts = [(len(drops), "dropout layer"), (len(norms), "batch normalization")]
    return " and ".join(plural(count, what) for count, what in counts if count)


def _evaluated(modules: dict[str, nn.Module], drops: list[str], norms: list[str], by_loss: bool) -> Finding:
    fresh = [name for name in norms if not int(getattr(modules[name], "num_batches_tracked", None) or 0)]
    why = (
        "the batch normalizations have stored no statistics yet, so that they normalize nothing"
        if fresh
        else "dropout drops nothing, and batch normalization uses stored statistics"
        if drops and norms
        else "dropout drops nothing"
        if drops
        else "batch normalization uses stored statistics"
    )
    return Finding(
        "eval_mode",
        Status.BROKEN if fresh else Status.LOOK,
        f"{'the loss calls the model' if by_loss else 'the model trains'} in evaluation mode, with"
        f" {_parts(drops, norms)} in it: {why}",
        "call model.train() before the first step, and again after each evaluation",
        "dropout and batch normalization work as in the model's definition",
        ("model", *(["loss"] if by_loss else []), *(fresh or [*drops, *norms])),
    )


def _heavy(rates: dict[str, float], own: dict[str, float]) -> Iterator[Finding]:
    heavy = list(dict.fromkeys([*(name for name, each in rates.items() if each >= HEAVY), *own]))
    if heavy:
        rate = max(own.get(name, rates.get(name, 0.0)) for name in heavy)
        kept = f"multiplies the rest by {1 / (1 - rate):.3g}" if rate < 1 else "leaves nothing"
        yield Finding(
            "heavy_dropout", Status.BROKEN,
            f"dropout at {listed(heavy)} drops {100 * rate:.4g} % of the values and {kept}",
            f"lower p of {listed(heavy)}: 0.1 to 0.5 is usual (was 1 - {rate:.3g} = {1 - rate:.3g} meant?)",
            f"the noise falls from {(rate / max(1e-9, 1 - rate)) ** 0.5:.3g} times the signal to 1 at p = 0.5",
            tuple(heavy), Measure("dropout rate", rate, rate, rate),
        )  # fmt: skip


def _small(passed: Passed, norms: list[str]) -> Iterator[Finding]:
    small = [name for name in norms if passed.values.get(name, FEW_VALUES + 1) <= FEW_VALUES]
    if small:
        fewest = min(passed.values[name] for name in small)
        yield Finding(
            "small_norm_batch", Status.BROKEN,
            f"batch normalization at {listed(small)} has {fewest} values a channel: two become -1 and +1, whatever"
            " they were",
            "use batches of 16 examples or more, or group or layer normalization",
            "the output depends on an example's values again",
            tuple(small), Measure("values a channel", fewest, fewest, fewest),
        )  # fmt: skip


def _rate(module: nn.Module) -> float:
    rate = getattr(module, "p", getattr(module, "dropout", 0.0))
    return float(rate) if isinstance(rate, int | float) else 0.0


def _trains(module: nn.Module) -> bool:
    """Whether a batch normalization is neither frozen nor without stored statistics, which has one mode."""
    frozen = [not each.requires_grad for each in own_parameters(module).values()]
    return bool(getattr(module, "track_running_stats", False)) and not (frozen and all(frozen))
