"""The choice of what to watch, and the block in which it is watched."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from depthgauge.probe.layers import Layers, chosen_from, compiled_blocks
from depthgauge.probe.optimizers import members_of
from depthgauge.probe.record import ACTIVATION, ACTIVATION_GRADIENT, DIRECTIONS, UPDATE, Record
from depthgauge.probe.ring import Ring
from depthgauge.probe.session import Session
from depthgauge.probe.steps import scale_of
from depthgauge.probe.unread import NEVER_RAN


class UnreadWarning(UserWarning):
    """Warning of unseen tensors or layers; `Record.unread` lists them."""


@contextmanager
def track(
    module: nn.Module,
    *,
    optimizer: Any = None,
    scaler: Any = None,
    directions: Iterable[str] | None = None,
    layers: Layers | None = None,
    every: int = 1,
    on_step: Callable[[Record], None] | None = None,
    last: int | None = None,
    overlap: bool = False,
) -> Iterator[Record]:
    """Record statistics of a module's tensors while the block runs, and change no result.

    With an optimizer, step k is all that happens up to the end of its k-th `step()`, gradient accumulation included;
    weights and their gradients are read as `step()` finds them (accumulated, all-reduced, clipped and unscaled by
    whatever came before), and updates are the differences it made, as stored. A step that ends without `step()`, as a
    loss scaler skipped it, counts and says so (docs/probe.md: by which signs). Without an optimizer, step k begins with
    the k-th call of the module; weights are read there, weight gradients when a backward pass has added to them.

    What cannot be read raises nothing: it is counted in `Record.unread`, and told by one `UnreadWarning` at the end.

    Args:
        module: the model; its training loop stays as it is.
        optimizer: the optimizer whose steps are counted; needed for updates. A wrapper of any kind, or a list of
            optimizers, whose step ends when the last of the list has stepped.
        scaler: the GradScaler, or the number, that the loss is multiplied by: gradients are then known to be scaled,
            and skipped steps are seen as soon as it has been updated.
        directions: which of `activation`, `activation_gradient`, `weight`, `weight_gradient`, `update`; by default
            all of them, updates only with an optimizer.
        layers: names, patterns (`"encoder.*.attention"`) or types of the modules to look at; by default all. A
            parameter belongs to the module that holds it.
        every: record steps 0, every, 2 every, ...
        on_step: called with the record after each recorded step, for instance to write it out and `clear()` it.
            As a decorator, `@track(model, on_step=...)` records each run of the function.
        last: keep only so many rows, the last, and stop recording at the first value that is not finite: a
            `NonFiniteWarning` tells of it when the step ends, or a note on the exception that ends the block.
            `Record.first_nonfinite` has that value and the rows up to it.
        overlap: read activations and gradients of 1 MiB or more in another thread beside the step, where a processor is
            left for it, and keep up to 24 MiB of them until they are read. The rows are the same; a tensor that is
            changed meanwhile is left out and told of, but for changes that PyTorch does not count (docs/probe.md).

    Yields:
        The `Record`, which can be read inside the block and after it.

    Raises:
        ValueError: a direction or layer that does not exist, updates without an optimizer, `every` below 1,
            `last` below 1, an optimizer without a `step()` to watch, a loss scale that is not a positive number, or
            activations of a module that `torch.compile` has already compiled.
        RuntimeError: with `overlap`, when a step ends: the thread that reads has failed, which the cause explains.
    """
    wanted = _directions(directions, optimizer)
    if every < 1:
        raise ValueError(f"every={every} records no step; it takes a whole number from 1")
    if scaler is not None:
        _check_scale(scaler)
    if last is not None and not (isinstance(last, int) and not isinstance(last, bool) and last >= 1):  # type: ignore[redundant-expr]  # a user's code is not type-checked
        raise ValueError(f"last={last!r} keeps no row; it takes a whole number from 1")
    members = None if optimizer is None else members_of(optimizer)
    chosen = chosen_from(module, layers)
    fused = compiled_blocks(module) if wanted & {ACTIVATION, ACTIVATION_GRADIENT} else {}
    session = Session(module, members, wanted, every, scaler, on_step, overlap)
    record = session.record
    ring = None if last is None else Ring(session, last, on_step)
    with ExitStack() as undo:
        undo.callback(session.close)
        session.attach(chosen, fused, undo)
        try:
            yield record
        except Exception as error:
            if ring is not None:
                ring.explain(error)
            raise
        record._ended = math.inf
        session.finish()
        silent = not session.saw_calls
    # The block is closed: where warnings are errors, nothing is left behind.
    if ring is not None:
        ring.finish()
    _warn(record, silent)


_NEVER = (NEVER_RAN, "hold weights and never ran as modules")


def _check_scale(scaler: Any) -> None:
    try:
        scale = scale_of(scaler)
    except (TypeError, ValueError):
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise ValueError(f"scaler={scaler!r} is no loss scale; it takes a GradScaler or a positive number")


def _warn(record: Record, silent: bool) -> None:
    clauses = []
    if silent:
        clauses.append(
            "no call of the tracked modules was seen; if the model runs inside of torch.compile, run the one that was"
            " not compiled"
        )
    reasons: dict[str, list[str]] = {}
    tensors: dict[str, int] = {}
    for each in record.unread:
        reasons.setdefault(each.reason, []).append(each.layer)
        tensors[each.reason] = tensors.get(each.reason, 0) + each.tensors
    for reason, layers in reasons.items():
        if reason == NEVER_RAN:
            clauses.append(f"{_names(layers)} {_NEVER[len(layers) > 1]}")
        elif tensors[reason]:
            clauses.append(f"{tensors[reason]} tensors of {_names(layers)} were left out ({reason})")
        else:
            clauses.append(f"activations of {_names(layers)} were left out ({reason})")
    if clauses:
        warnings.warn(f"{'; '.join(clauses)}; Record.unread lists what was not seen", UnreadWarning, stacklevel=4)


def _names(layers: Sequence[str], most: int = 3) -> str:
    named = ", ".join(repr(name) if name else "the module itself" for name in layers[:most])
    return named + (f" and {len(layers) - most} more" if len(layers) > most else "")


def _directions(directions: Iterable[str] | None, optimizer: Any) -> frozenset[str]:
    if directions is None:
        return frozenset(DIRECTIONS) - (set() if optimizer is not None else {UPDATE})
    wanted = frozenset([directions] if isinstance(directions, str) else directions)
    for name in wanted - set(DIRECTIONS):
        raise ValueError(f"no direction is called {name!r}; there are {', '.join(DIRECTIONS)}")
    if UPDATE in wanted and optimizer is None:
        raise ValueError("updates are seen at the optimizer's step: pass optimizer=")
    return wanted
