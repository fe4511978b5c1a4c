"""Teacher-forced bisection: each layer's own error in low precision, apart from what it inherits.

frame = precision.bisect(model, x, torch.bfloat16)
frame[frame["direction"] == "forward"].sort_values("own", ascending=False)      # which layers hurt
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from depthgauge import formats
from depthgauge.precision.arithmetic import Weights, arithmetic, untouched
from depthgauge.precision.emulation import unrounded
from depthgauge.precision.forcing import BACKWARD, FORWARD, INHERITED, OWN, TOTAL, Bisection, Loss
from depthgauge.precision.recording import Call

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
    numbers of the float32 run, so that dropout masks are the same; compiled modules run uncompiled. Weights, buffers,
    modes, hooks, attributes and random states are left as they were. Complex numbers are those whose parts have the
    dtype; where torch has none (bfloat16), or no such operator, they are emulated, and `error` says so.

    Args:
        module: any module; one in another dtype is taken as its float32 version.
        batch: what the loss takes; without a loss, the module's inputs: a tensor, a tuple (by position), a mapping (by
            name). A pair whose second tensor the module does not take is (inputs, class numbers).
        dtype: a dtype or the name of a format. A format in which torch has no arithmetic is emulated (`emulated`).
        loss: (module, batch) -> the scalar from which the backward pass starts; without one, it starts from a normally
            distributed gradient of the outputs, drawn once.

    Returns:
        One row a module and direction, in the order of execution: `layer` (as in `named_modules`), `layer_index` (from
        1), `kind` (its class), `direction` (`forward`, `backward`), `calls`, `own`, `inherited`, `total`, and `error`:
        why the dtype's own arithmetic could not be used (the format is then emulated; `own` is infinite where that
        raises too), or why there is no comparison (`inherited` and `total` are then NaN, `own` never). There is no
        backward row where no gradient arrives.

    Raises:
        ValueError: no such format, or a lazy module that has no weights yet.
    """
    weights = Weights(module)
    runs = Bisection(module, weights, arithmetic(dtype))
    with untouched(module), unrounded():  # in a block that emulates a format, float32 would not be float32
        try:
            with warnings.catch_warnings(), runs.parts.intercepted():
                warnings.simplefilter("ignore")  # what the model has to say of a dtype it has said in its own run
                runs.measure(batch, loss or _pairs(module, batch))
        finally:
            weights.restore()
    return _frame(runs)


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
        return lambda model, pair: nn.functional.cross_entropy(model(pair[0]), pair[1])
    return None
