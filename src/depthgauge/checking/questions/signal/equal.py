"""Findings about units that are one unit, and layers that are one layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.architecture import own_parameters
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.questions.signal.passing import Passed
from depthgauge.checking.words import listed


def findings(model: nn.Module, before: dict[str, Tensor], passed: Passed) -> Iterator[Finding]:
    """Yield what began equal and still is.

    Args:
        model: after a few steps.
        before: its parameters before them, by name.
        passed: passes after them.
    """
    after = dict(model.named_parameters())
    sizes = {
        f"{name}.{own}" if name else own: module.hidden_size
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
        for own in own_parameters(module)
        if own.startswith(("weight_ih", "weight_hh"))
    }
    yield from _units(after, before, passed, sizes)
    yield from _layers(after, before, passed)


def _units(
    after: dict[str, nn.Parameter], before: dict[str, Tensor], passed: Passed, sizes: dict[str, int]
) -> Iterator[Finding]:
    """Layers that began with equal rows, not zero, and still have them; of recurrent ones in each gate."""
    for name, each in after.items():
        if each.dim() < 2 or name not in passed.given or min(each.shape[0], each[0].numel()) < 2:
            continue
        gates = len(each) // sizes.get(name, len(each))
        parts = [part for value in (before[name], each.detach()) for part in value.chunk(gates)]
        if bool(before[name].any()) and all(map(_rows_equal, parts)):
            layer = name.rpartition(".")[0]
            text = (
                f"all {len(parts[0])} units of `{layer}` have equal weights, and after the first steps they still have"
            )
            yield Finding("equal_units", Status.BROKEN, text, f"draw the weights of `{layer}` at random"
                          " (torch.nn.init.kaiming_normal_)", f"{len(each)} units in place of one",
                          (layer, name), Measure("equal units", float(len(each))))  # fmt: skip


def _layers(after: dict[str, nn.Parameter], before: dict[str, Tensor], passed: Passed) -> Iterator[Finding]:
    """Layers that began with the same weights, were changed by steps, and still have the same."""
    kept = [
        name
        for name, each in after.items()
        if each.dim() > 1 and name in passed.alive and not _rows_equal(before[name]) and not _near(each, before[name])
    ]
    met: dict[tuple[object, ...], list[str]] = {}
    for name in kept:
        met.setdefault((before[name].shape, nested.real(before[name]).double().sum().item()), []).append(name)
    for first, *others in met.values():
        same = [
            name
            for name in others
            if torch.equal(before[first], before[name])
            and _near(after[first], after[name])
            and after[first].data_ptr() != after[name].data_ptr()  # one memory under two names
        ]
        if same:
            layers = [name.rpartition(".")[0] or name for name in (first, *same)]
            text = f"{listed(layers)} begin with the same weights, and after the first steps they still have the same"
            yield Finding("equal_units", Status.BROKEN, text, f"draw the weights of `{layers[-1]}` anew, in place of a"
                          " copy", f"{len(layers)} layers in place of one",
                          tuple(layers), Measure("equal layers", float(len(layers))))  # fmt: skip


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one.detach() - other).abs().max() <= 1e-6 * one.detach().abs().max())


def _rows_equal(weight: Tensor) -> bool:
    spread = (weight - weight[:1]).abs().max()
    return bool(spread <= 1e-6 * weight.abs().max())  # float32's rounding over ten steps
