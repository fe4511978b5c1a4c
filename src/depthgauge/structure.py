"""Where things stand in a model: its weight layers, and the ends of its residual branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def layers(model: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """The weight layers of a model, (name, module), in forward order; any module will do.

    A weight layer itself holds a parameter of two or more dimensions: linear, convolution, embedding. Its name is the
    one that `named_modules` and `state_dict` use. The models of `depthgauge.models` register their layers in the order
    in which they run, a projected shortcut after the branch beside it; of other modules the order is that of
    registration.
    """
    return tuple(
        (name, module)
        for name, module in model.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    )


def branch_ends(model: nn.Module) -> tuple[str, ...]:
    """Names of the weight layers that end a residual branch, in forward order; none without shortcuts.

    Their number is the N of schemes that scale by depth (1/sqrt(N) in GPT-2, zero in Fixup). A block names its own, in
    an attribute `branch_ends`, relative to itself; so can a block of any other model.
    """
    return tuple(
        f"{name}.{end}" if name else end
        for name, module in model.named_modules()
        for end in getattr(module, "branch_ends", ())
    )
