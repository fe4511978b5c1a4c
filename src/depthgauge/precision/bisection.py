"""Teacher-forced bisection: each layer's own error in low precision, apart from what it inherits.

frame = precision.bisect(model, x, torch.bfloat16)
frame[frame["direction"] == "forward"].sort_values("own", ascending=False)      # which layers hurt
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from depthgauge import formats, nested
from depthgauge.precision import checks
from depthgauge.precision.arithmetic import arithmetic
from depthgauge.precision.copying import copied
from depthgauge.precision.emulation import unrounded
from depthgauge.precision.forcing import BACKWARD, FORWARD, INHERITED, OWN, TOTAL, Bisection, Loss
from depthgauge.precision.recording import Call
from depthgauge.probe.hooks import paused
from depthgauge.restoring import random_states_kept

if TYPE_CHECKING:
    import pandas as pd


def bisect(
    module: nn.Module, batch: Any, dtype: torch.dtype | str | formats.Format, *, loss: Loss | None = None
) -> pd.DataFrame:
    """Errors of every module that runs, relative to float32: its own, what it inherits, and the total.

    An error is the root mean square of the difference over that of the float32 values, over all calls of the module
    and all tensors of one kind. Two equal infinities, or two NaNs, agree; any other value that is not finite is an
    infinite error, and so is any difference from exact zeros. Each module runs three times:

    - `own`: the module is given the inputs that it has in float32 (backward, also the gradients with respect to its
      outputs), rounded to the dtype, and its children are replaced by their float32 outputs (and gradients), rounded
      likewise. The error is the largest of those of what its operations make: its output, what it hands to each
      child; backward, the gradients with respect to its inputs, to its parameters, to each child's output. What is
      only handed on, or a view of it, has no error, so that a pure container has none.
    - `inherited`: the whole module in float32, on the inputs (and output gradients) of the low-precision run.
    - `total`: the plain low-precision run of the whole model: weights, buffers and inputs in the dtype. The loss alone
      is computed in float32.

    Forward the error of `inherited` and `total` is that of the output; backward the larger one of the gradients with
    respect to the inputs and to the parameters that the module holds. The three need not add up.

    Modules run in the modes that they have, with gradients (fused inference paths are not taken) and with the random
    numbers of the float32 run, so that dropout masks are the same; compiled modules run uncompiled. A module that keeps
    something from call to call (a moving average, a cache, a generator of its own) begins each of its runs with what it
    had at that call of the float32 run; of an attribute through which gradients pass, as of an input and an output.
    Autocast that a module turns on for itself is on in float32, too. Weights, buffers, modes, hooks, attributes and
    random states are left as they were, and a record that is open (`probe.track`) sees nothing. Complex numbers are
    those whose parts have the dtype; where torch has none (bfloat16), or no such operator, they are emulated, and
    `error` says so.

    Args:
        module: any module; one in another dtype is taken as its float32 version.
        batch: what the loss takes; without a loss, the module's inputs: a tensor, a tuple (by position), a mapping (by
            name). A pair whose second tensor the module does not take is (inputs, class numbers).
        dtype: a dtype or the name of a format. A format in which torch has no arithmetic is emulated (`emulated`).
        loss: (module, batch) -> the scalar from which the backward pass starts; without one, it starts from a normally
            distributed gradient of the outputs, drawn once. Where a loss depends on the outputs by gradients with
            respect to them alone (a gradient penalty), the backward pass is the one that the loss takes.

    Returns:
        One row a module and direction, in the order of execution: `layer` (as in `named_modules`), `layer_index` (from
        1), `kind` (its class), `direction` (`forward`, `backward`), `calls`, `own`, `inherited`, `total`, and `error`:
        why the dtype's own arithmetic could not be used (the format is then emulated; `own` is infinite where that
        raises too), or why there is no comparison (`inherited` and `total` are then NaN). There is no backward row
        where no gradient arrives. Where a module's forward takes gradients of its children itself, its `own` is its
        `total`, as `error` says, and the backward `inherited` of what is around it is NaN.

    Raises:
        ValueError: no such format; a module or batch without values, as lazy ones, empty ones and those on the meta
            device; a loss that never calls the module, has no gradient, or is no scalar.
        TypeError: what is no module or no batch, a batch that the module does not take, or what is no loss.
        Exception: what module and loss raise on the batch.
    """
    checks.check_module("module", module)
    loss = _loss(module, batch, loss)
    low = arithmetic(dtype)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(torch.inference_mode(False))  # a caller's would leave the backward pass out
        enter(torch.enable_grad())
        enter(unrounded())  # in a block that emulates a format, float32 would not be float32
        runs = Bisection(module, low)
        enter(paused())
        enter(random_states_kept())
        enter(runs.parts.states.kept())
        enter(warnings.catch_warnings())
        enter(runs.parts.intercepted())
        warnings.simplefilter("ignore")  # what the model has to say of a dtype it has said in its own run
        if any(each.is_inference() for _, each in nested.tensors(batch)):
            batch, _ = copied(batch, torch.clone, runs.parts.kept)  # which autograd could not save
        runs.measure(batch, loss)
    if not runs.reference:
        called = "another, or module.forward, or the module inside a transform of torch.func"
        raise ValueError(f"the loss never calls the module that it is given: it calls {called}")
    return _frame(runs)


def _loss(module: nn.Module, batch: Any, loss: Loss | None) -> Loss | None:
    """The loss that a bisection calls, which checks its value; None where the outputs' gradients are drawn."""
    if loss is None:
        checks.check_batch("batch", batch)
        loss = _pairs(module, batch)
        if loss is None:
            checks.check_call(module, batch)
            return None
    else:
        checks.check_values("batch", batch)
        checks.check_loss(loss)
    trained = any(each.requires_grad for each in module.parameters())
    given = loss
    return lambda model, part: checks.checked_value(given(model, part), trained=trained)


def _frame(runs: Bisection) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 # half a second, needed only here

    calls: dict[int, list[Call]] = {}
    for call in runs.reference:
        calls.setdefault(id(call.module), []).append(call)
    order = {key: place for place, key in enumerate(calls, start=1)}
    backward = [key for key in reversed(calls) if any(call.arrived for call in calls[key])]
    rows = [(key, FORWARD) for key in calls] + [(key, BACKWARD) for key in backward]
    return pd.DataFrame(
        [
            {
                "layer": runs.parts.names[key],
                "layer_index": order[key],
                "kind": type(calls[key][0].module).__name__,
                "direction": direction,
                "calls": len(calls[key]),
                **{column: runs.tallies[key, direction, column].value for column in (OWN, INHERITED, TOTAL)},
                "error": runs.reasons.get(key, ""),
            }
            for key, direction in rows
        ]
    )


def _pairs(module: nn.Module, batch: Any) -> Loss | None:
    """Cross-entropy where the batch is (inputs, labels), as far as the module's signature tells."""
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        return None
    try:
        inspect.signature(module.forward).bind(*batch)
    except TypeError:
        checks.check_labels(batch[1])
        return lambda model, pair: nn.functional.cross_entropy(model(pair[0]), pair[1])
    return None
