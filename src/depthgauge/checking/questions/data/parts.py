"""Parts of a model that were left in evaluation mode, statistics that no batch reaches, dropout that is no module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.parameters import held_by, of_a_package
from depthgauge.checking.questions.data.modes import HEAVY
from depthgauge.checking.questions.data.passing import DROPS, NORMS, Passed
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.words import listed
from depthgauge.workload import Training

LAST = 0.9  # of a running statistic is the last batch's: Keras and TensorFlow call 1 minus torch's momentum so
_DROPOUT = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)
_ATTENTION = functional.scaled_dot_product_attention

KINDS = {
    "part_in_eval": Kind(
        "fault",
        "a part is in evaluation mode while the model trains: it holds parameters that train, with dropout that drops"
        " nothing, or batch normalization whose statistics are still those that it was built with",
    ),
    "statistics_still": Kind(
        "fault",
        "batch normalization in train mode has the momentum 0, so that its running statistics never change",
    ),
    "statistics_of_one_batch": Kind(
        "fault",
        f"batch normalization in train mode has a momentum of {LAST} or more, so that its running statistics are the"
        " last batch's; what a module of an installed package sets is let pass",
    ),
    "heavy_noise": Kind("fault", f"dropout that is called as a function has a rate of {HEAVY} or more"),
}


def findings(training: Training, passed: Passed, batch: Any) -> Iterator[Finding]:
    """Yield what is found."""
    yield from _evaluated(training, passed)
    yield from _statistics(training, passed)
    yield from _called(training, batch)


def _evaluated(training: Training, passed: Passed) -> Iterator[Finding]:
    modules = dict(training.model.named_modules())
    off = [name for name, trains in passed.training.items() if not trains]
    if not training.model.training or (len(off) == len(passed.training) and not passed.called):
        return  # the whole of it, which is told as such
    held = {id(each) for each in held_by(training.optimizer)}
    found: dict[str, list[str]] = {}
    for name in off:
        part = _largest(modules, name)
        trains = any(each.requires_grad and id(each) in held for each in modules[part].parameters())
        if trains and (_drops(modules[name]) or _unused(modules[name])):
            found.setdefault(part, []).append(name)
    for part, names in found.items():
        norms = [name for name in names if isinstance(modules[name], NORMS)]
        does = (
            f"batch normalization ({listed(norms)}) has stored nothing yet and normalizes nothing" if norms
            else f"dropout ({listed(names)}) drops nothing"
        )  # fmt: skip
        yield Finding(
            "part_in_eval", Status.BROKEN if norms else Status.LOOK,
            f"`{part}` trains in evaluation mode while the rest of the model is in training mode: {does}",
            f"call {part}.train(), or model.train() before the first step and after each evaluation",
            "dropout and batch normalization work as in the model's definition", (part, *names[:5], "model"),
        )  # fmt: skip


def _largest(modules: dict[str, nn.Module], name: str) -> str:
    """The largest part in evaluation mode around a module."""
    while name and "." in name and not modules[name.rpartition(".")[0]].training:
        name = name.rpartition(".")[0]
    return name


def _drops(module: nn.Module) -> bool:
    rate = getattr(module, "p", getattr(module, "dropout", 0.0))
    return isinstance(module, DROPS) and isinstance(rate, int | float) and rate > 0


def _unused(module: nn.Module) -> bool:
    """Tell whether a batch normalization has the statistics that it was built with."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(module, NORMS) or mean is None or variance is None:
        return False
    return not bool(mean.any()) and bool((variance == 1).all())


def _statistics(training: Training, passed: Passed) -> Iterator[Finding]:
    modules = dict(training.model.named_modules())
    live = {
        name: float(modules[name].momentum)
        for name, trains in passed.training.items()
        if trains
        and isinstance(modules[name], NORMS)
        and getattr(modules[name], "track_running_stats", False)
        and getattr(modules[name], "momentum", None) is not None
    }
    still = [name for name, momentum in live.items() if momentum == 0]
    if still:
        yield Finding(
            "statistics_still", Status.BROKEN,
            f"batch normalization ({listed(still)}) has the momentum 0: its running statistics stay as they are, and"
            " evaluation normalizes by them", "set momentum to 0.1, torch's default",
            "evaluation normalizes as training does", (*still[:8], "model"), Measure("momentum", 0.0),
        )  # fmt: skip
    last = [name for name, momentum in live.items() if momentum >= LAST and not _packaged(modules, name)]
    if last:
        momentum = max(live[name] for name in last)
        yield Finding(
            "statistics_of_one_batch", Status.LOOK,
            f"batch normalization ({listed(last)}) has the momentum {momentum:g}: its running statistics are those of"
            " the last batch, as torch's momentum is the share of the new one",
            f"set momentum to {1 - momentum:.2g}, if Keras' or TensorFlow's was meant, or to 0.1",
            "evaluation normalizes by many batches", (*last[:8], "model"), Measure("momentum", momentum),
        )  # fmt: skip


def _packaged(modules: dict[str, nn.Module], name: str) -> bool:
    """Tell whether a part around a module is of an installed package, torch aside."""
    while name:
        name = name.rpartition(".")[0]
        if of_a_package(modules[name]):
            return True
    return False


class _Noted(TorchFunctionMode):
    """Notes dropout of a high rate that is called as a function, by the module in which it is."""

    def __init__(self, within: Within) -> None:
        super().__init__()
        self._within = within
        self.found: dict[str, float] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, module = self._within.innermost or ("loss", None)
        if func in _DROPOUT and not isinstance(module, DROPS):
            rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            if kwargs.get("training", args[2] if len(args) > 2 else True) and rate >= HEAVY:
                self.found[name] = max(rate, self.found.get(name, 0.0))
        elif func is _ATTENTION and not isinstance(module, DROPS):
            rate = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            if rate >= HEAVY:
                self.found[name] = max(rate, self.found.get(name, 0.0))
        return func(*args, **kwargs)


def _called(training: Training, batch: Any) -> Iterator[Finding]:
    modules = training.model.modules()
    if any(isinstance(each, torch.jit.ScriptModule) or type(each).__name__ == "OptimizedModule" for each in modules):
        return
    with training.untouched(), Within(training.model) as within, _Noted(within) as noted:
        training.value(batch)
    for name, rate in noted.found.items():
        yield Finding(
            "heavy_noise", Status.BROKEN,
            f"dropout in {name if name == 'loss' else f'`{name}`'} drops {100 * rate:.4g} % of the values",
            "lower its p: 0.1 to 0.5 is usual (was 1 - p meant?)", "most of the signal comes through",
            (name, *(["model"] if name != "loss" else [])), Measure("dropout rate", rate, rate, rate),
        )  # fmt: skip
