"""One pass under hooks: what reaches the first weights, which layers drop or normalize, what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.checking.questions.data.added import Masks
from depthgauge.checking.questions.data.dropping import Dropped
from depthgauge.checking.questions.data.probable import Again
from depthgauge.checking.questions.data.squares import Squares
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.terms import Term
from depthgauge.workload import Training

ROUNDED = 0.01  # of probabilities in bfloat16, which has 8 bits
DROPS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.MultiheadAttention, nn.RNNBase,
)  # fmt: skip
NORMS = nn.modules.batchnorm._BatchNorm
_EMBEDS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Reached:
    """The numbers that reach the first layer with weights.

    Attributes:
        layer: its name.
        rms: their root mean square.
    """

    layer: str
    rms: float


@dataclass(eq=False)
class Passed:
    """Observations of one pass over the first batch.

    Attributes:
        first: what the first weights got; None where no layer was seen that takes numbers.
        training: of each dropout and batch normalization that was called, whether it was in training mode; calls that
            no gradient passes are left out where there are others.
        aside: the same of calls that no gradient passes.
        called: whether the module itself was in training mode when it was last called so; True where none was seen.
        left: whether it is in training mode after the pass.
        values: of each batch normalization that was called, the smallest number of values a channel was normalized by.
        scores: the module's output, where it has one.
        rates: of modules that call a dropout function, its rate.
        shares: of modules of the user's own that set numbers to 0 and multiply all others, the share that becomes 0.
        mask: the first attention that adds a mask of ones and zeros, and their share.
        again: what takes probabilities for scores, and the module in whose call that is.
        square: the first operation that lays a number of each example against those of all; empty where none does.
        sizes: shapes of an output and its targets, which have more numbers than it; empty where none has.
    """

    first: Reached | None = None
    training: dict[str, bool] = field(default_factory=dict)
    aside: dict[str, bool] = field(default_factory=dict)
    called: bool = True
    left: bool = True
    values: dict[str, int] = field(default_factory=dict)
    scores: Tensor | None = None
    rates: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    mask: tuple[str, float] | None = None
    again: tuple[str, str] | None = None
    square: str = ""
    sizes: str = ""


def make(training: Training, batch: Any) -> Passed:
    """Make the pass and leave the training as it was."""
    passed = Passed()
    with training.untouched(), _hooks(training.model, passed), Within(training.model) as within:
        modes = Dropped(training.model, within, DROPS), Masks(within), Again(within), Squares(within, batch)
        with ExitStack() as watched:
            dropped, masks, again, squares = map(watched.enter_context, modes)
            training.value(batch)
        passed.left = training.model.training
    passed.training = {**passed.aside, **passed.training}
    passed.rates, passed.shares, passed.mask = dropped.rates, dropped.shares, masks.found
    passed.again, passed.square, passed.sizes = again.found, squares.found, squares.sizes
    return passed


@contextmanager
def _hooks(model: nn.Module, passed: Passed) -> Iterator[None]:
    handles = []
    if not isinstance(model, torch.jit.ScriptModule):
        handles.append(model.register_forward_hook(partial(_came_out, passed)))
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # whose calls cannot be hooked
            continue
        if isinstance(module, (*DROPS, NORMS)):
            handles.append(module.register_forward_pre_hook(_switched(passed, name)))
        if _weighs(module):
            handles.append(module.register_forward_pre_hook(_entered(passed, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weighs(module: nn.Module) -> bool:
    weight = vars(module).get("_parameters", {}).get("weight")
    matrix = isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight) and weight.dim() > 1
    return (matrix and not isinstance(module, _EMBEDS)) or isinstance(module, _RECURRENT)


def _switched(passed: Passed, name: str) -> Any:
    def hook(module: Any, args: tuple[Any, ...]) -> None:
        modes = passed.training if torch.is_grad_enabled() else passed.aside
        modes[name] = modes.get(name, False) or module.training
        if isinstance(module, NORMS) and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            values = args[0].numel() // max(1, args[0].shape[1])
            passed.values[name] = min(values, passed.values.get(name, values))

    return hook


def _entered(passed: Passed, name: str) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        if passed.first is None and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            passed.first = Reached(name, _rms(args[0]))

    return hook


def _came_out(passed: Passed, module: nn.Module, _: Any, output: Any) -> None:
    if torch.is_grad_enabled():
        passed.called = module.training
    try:
        passed.scores = nested.scores(output).detach().clone()
    except nested.NoTensorError:
        passed.scores = None


def _rms(tensor: Tensor) -> float:
    values = tensor.detach().float()
    values = values[values.isfinite()]
    return values.square().mean().sqrt().item() if len(values) else math.nan


def probabilities(scores: Tensor | None, term: Term) -> bool:
    """Tell whether a module's output is probabilities already, and the very scores of a cross-entropy."""
    if scores is None or term.classes < 2 or scores.dim() < 2 or not bool((scores >= 0).all()):
        return False
    for dim in {1, scores.dim() - 1}:
        if scores.shape[dim] == term.classes:
            rows = scores.movedim(dim, -1).reshape(-1, term.classes).float()[: len(term.scores)]
            ones = torch.ones(len(rows), device=rows.device)
            same = rows.shape == term.scores.shape and torch.allclose(rows.log_softmax(1), term.scores, atol=ROUNDED)
            if same and torch.allclose(rows.sum(1), ones, atol=ROUNDED):
                return True
    return False
