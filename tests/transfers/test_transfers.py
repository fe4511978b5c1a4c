"""Bytes of every in-place and `out=` operator against experiment, and of those that matter most by hand."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable

import by_experiment as experiment
import pytest
import torch

from depthgauge.operations import _PARTS, counting

FLOAT, INDEX = 4, 8
FAMILIES: dict[str, list[experiment.Operator]] = defaultdict(list)
for _operator in experiment.overloads():
    FAMILIES[_operator.overloadpacket.__name__.lstrip("_")[0]].append(_operator)

# Of these the values decide what is read, or the experiment's few values do not show it: counted is what may be.
VALUES_DECIDE = re.compile(
    r"_fused_adagrad_|conj_physical_|cum(max|min|prod_|sum_)|(eq|ne|heaviside|logical_or)_?|hard(shrink|tanh)_backward"
    r"|index_copy|isin|isneginf|(lin|log)space|scatter|(softshrink|threshold)_backward|multilabel_margin_loss_.*"
    r"|nll_loss_.*"
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_in_place_and_out_move_what_an_experiment_says(family: str) -> None:
    met, wrong = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is deprecated is counted, too
        for operator in FAMILIES[family]:
            name, given = operator.overloadpacket.__name__, experiment.suiting(operator)
            if given is None:
                continue
            found = experiment.measured(operator, given, singly=name in _PARTS)
            with counting() as operations:
                experiment.call(operator, given)
            counted = sum(operation.bytes for operation in operations)
            met += 1
            if counted < found or (counted != found and not VALUES_DECIDE.fullmatch(name)):
                wrong.append(f"{operator}: {counted} bytes counted, {found} found")
    assert not wrong
    assert met >= len(FAMILIES[family]) // 3


def moved(work: Callable[[], object]) -> int:
    with counting() as operations:
        work()
    return sum(operation.bytes for operation in operations)


N = 20
x, y, half = torch.rand(4, 5), torch.rand(4, 5), torch.rand(4, 5, dtype=torch.float16)
tall, index, row = torch.rand(100, 5), torch.tensor([3, 1]), torch.rand(5)
mask = torch.arange(N).view(4, 5) % 4 == 0
image, pooled, wide = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 2, 2), torch.rand(4, 5)
BY_HAND: dict[str, tuple[Callable[[], object], int]] = {
    "a copy reads its source and writes its target": (lambda: x.clone().copy_(y), 2 * 2 * N * FLOAT),
    "from another format": (lambda: x.copy_(half), N * (2 + FLOAT)),
    "to another format": (lambda: half.copy_(x), N * (2 + FLOAT)),
    "of one number": (lambda: x.copy_(row[0]), (N + 1) * FLOAT),
    "what is filled is not read": (lambda: (x.zero_(), x.fill_(2.0), x.uniform_()), 3 * N * FLOAT),
    "an update reads two and writes one": (lambda: x.add_(y), 3 * N * FLOAT),
    "a result's tensor is not read": (lambda: torch.add(x, y, out=torch.empty_like(x)), 3 * N * FLOAT),
    "what is broadcast is read once": (lambda: x.add_(row), (2 * N + 5) * FLOAT),
    "and what is expanded": (lambda: x.add_(row.expand(4, 5)), (2 * N + 5) * FLOAT),
    "what is given twice, too": (lambda: x * x, 2 * N * FLOAT),
    "or by two views": (lambda: x @ x.t(), (N + 16) * FLOAT),
    "halves of one tensor are two": (lambda: x[:2] + x[2:], (10 + 10 + 10) * FLOAT),
    "views move nothing": (lambda: (x.t(), x[1:], x.view(-1), x.clone().detach()), 2 * N * FLOAT),
    "nor do views in place": (lambda: x.view(5, 4).t_().unsqueeze_(0), 0),
    "lists are read and written": (lambda: torch._foreach_add_([x, y], [y, x]), (2 * N + 2 * N) * FLOAT),
    "an embedding reads its rows": (
        lambda: torch.nn.functional.embedding(index, tall), 2 * INDEX + 2 * 2 * 5 * FLOAT,
    ),
    "rows are added to": (lambda: tall.index_add_(0, index, x[:2]), 2 * INDEX + 3 * 10 * FLOAT),
    "rows are put": (lambda: tall.index_put_((index,), x[:2]), 2 * INDEX + 2 * 10 * FLOAT),
    "or what a mask may pick": (
        lambda: tall.index_put_((tall[:, 0] > 2,), torch.tensor(0.0)), 100 * (FLOAT + 1 + 1) + (500 + 1) * FLOAT,
    ),
    "and of what it picks as many": (lambda: x.masked_select(mask), N + 2 * 5 * FLOAT),
    "a triangle is zeroed": (lambda: (x.triu_(), x.tril_(-1)), (6 + 14) * FLOAT),
    "like another": (lambda: (torch.zeros_like(x), x.new_ones(3), torch.empty_like(x)), (N + 3) * FLOAT),
    "a bias times 0 is not read": (lambda: torch.addmm(row, y[:, :4], wide, beta=0), (16 + 20 + 20) * FLOAT),
    "a pool's gradient takes the input's shape alone": (
        lambda: torch.ops.aten.avg_pool2d_backward(pooled, image, [2], [2], [0], False, True, None), (8 + 32) * FLOAT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", BY_HAND)
def test_by_hand(said: str) -> None:
    work, expected = BY_HAND[said]
    assert moved(work) == expected


def test_the_first_layer_of_convolutions_reads_no_weights_backward() -> None:
    images, layer = torch.rand(2, 3, 6, 6), torch.nn.Conv2d(3, 4, 3, bias=False)
    out = layer(images)
    ones = torch.ones_like(out)
    counted = moved(lambda: torch.autograd.grad(out, [layer.weight], ones))
    assert counted == FLOAT * (out.numel() + images.numel() + layer.weight.numel())


def test_batch_statistics_are_written_in_training_alone() -> None:
    layer, rows = torch.nn.BatchNorm1d(5), torch.rand(4, 5)
    training = moved(lambda: torch.ops.aten.native_batch_norm(
        rows, None, None, layer.running_mean, layer.running_var, True, 0.1, 1e-5,
    ))  # fmt: skip
    assert training == FLOAT * (2 * N + 2 * 2 * 5 + 2 * 5)  # statistics are read, written and returned


@pytest.mark.parametrize("scaled", [False, True])
def test_a_fused_optimizer_writes_gradients_that_it_unscales(scaled: bool) -> None:
    weights, momentum = torch.rand(4, 5), torch.zeros(4, 5)
    scale = {"grad_scale": torch.tensor(2.0)} if scaled else {}
    settings = {"weight_decay": 0.0, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False}
    counted = moved(
        lambda: torch._fused_sgd_([weights], [y.clone()], [momentum], **settings, is_first_step=True, **scale)
    )
    assert counted - 2 * N * FLOAT == (4 + scaled) * N * FLOAT + scaled * FLOAT
