"""The list of operators against what is known by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from depthgauge.multiplying import LAYERS, SPARSE, SUMS
from depthgauge.operations import counting
from depthgauge.profiling.kinds import MATRIX, operator_kind

FLOAT = 4


def test_one_entry_a_call_in_the_order_in_which_they_run() -> None:
    n, inputs, outputs = 7, 5, 3
    layer = nn.Linear(inputs, outputs)
    x = torch.randn(n, inputs, requires_grad=True)
    with counting() as operations:
        functional.relu(layer(x)).sum().backward()
    names = [operation.name for operation in operations]
    assert names[:3] == ["aten::addmm", "aten::relu", "aten::sum"]
    assert names.count("aten::mm") == 2  # the gradients of input and weight
    product = operations[0]
    assert product.shapes == ((outputs,), (n, inputs), (inputs, outputs))
    assert product.flops == 2 * n * inputs * outputs
    assert product.bytes == FLOAT * (outputs + n * inputs + inputs * outputs + n * outputs)
    assert {operation.dtype for operation in operations} == {"float32"}


def test_views_are_not_listed_and_copies_are() -> None:
    with counting() as operations:
        torch.ops.aten._unsafe_view(torch.zeros(4, 6, dtype=torch.float64), [4, 6]).t().contiguous()
    assert [(one.name, one.bytes, one.dtype) for one in operations] == [
        ("aten::zeros", 8 * 24, "float64"),
        ("aten::clone", 2 * 8 * 24, "float64"),
    ]


def test_fused_attention_on_the_cpu_counts_as_attention_written_out() -> None:
    batch, heads, tokens, width = 2, 3, 8, 4
    q, k, v = (torch.randn(batch, heads, tokens, width, requires_grad=True) for _ in range(3))
    with counting() as forward:
        out = functional.scaled_dot_product_attention(q, k, v)
    one = 2 * batch * heads * tokens * tokens * width  # scores; the weighted sum of values costs as much again
    assert sum(operation.flops for operation in forward) == 2 * one
    with counting() as backward:
        out.sum().backward()
    # four products for the gradients, and the scores once more: they were not kept
    assert sum(operation.flops for operation in backward) == 5 * one


def _flops(work: Callable[[], object]) -> int:
    with counting() as operations:
        work()
    return sum(operation.flops for operation in operations)


M, K, N = 7, 5, 3
LEFT, RIGHT, LONG, SHORT = torch.ones(M, K), torch.ones(K, N), torch.ones(M), torch.ones(K)
BATCH = torch.ones(2, M, K)
BYTES = torch.ones(32, 32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("work", "products"),
    [
        (lambda: LEFT @ SHORT, M * K),
        (lambda: torch.addmv(LONG, LEFT, SHORT), M * K),
        (lambda: SHORT @ SHORT, K),
        (lambda: torch.vdot(SHORT, SHORT), K),
        (lambda: torch.addr(LEFT, LONG, SHORT), M * K),
        (lambda: torch.addbmm(torch.ones(M, N), BATCH, torch.ones(2, K, N)), 2 * M * K * N),
        (lambda: torch._int_mm(BYTES, BYTES), 32**3),
        (lambda: nn.Bilinear(4, 5, 6)(torch.ones(8, 4), torch.ones(8, 5)), 8 * 4 * 5 * 6),
        (lambda: torch.conv_tbc(torch.ones(9, 2, 4), torch.ones(3, 4, 6), torch.ones(6)), 7 * 2 * 3 * 4 * 6),
    ],
    ids=["mv", "addmv", "dot", "vdot", "addr", "addbmm", "integers", "bilinear", "conv_tbc"],
)
def test_products_that_torch_does_not_count(work: Callable[[], object], products: int) -> None:
    assert _flops(work) == 2 * products


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")  # of torch, once a process
def test_sparse_products_are_those_of_the_stored_numbers() -> None:
    mask = torch.eye(M)  # one number a row
    for sparse in (mask.to_sparse(), mask.to_sparse_csr()):
        assert _flops(lambda sparse=sparse: sparse @ LEFT) == 2 * M * K  # type: ignore[misc]  # mypy infers no lambda
        with counting() as operations:
            torch.addmm(LEFT, sparse, LEFT)
        assert sum(operation.flops for operation in operations) == 2 * M * K
    assert [each.dtype for each in operations if each.flops] == ["float32"]
    assert _flops(lambda: LEFT.t() @ mask.to_sparse_csr()) == 2 * M * K
    assert _flops(lambda: torch.sparse.mm(mask.to_sparse(), mask.to_sparse())) == 2 * M


def test_jagged_batches_are_multiplied_row_by_row() -> None:
    rows = torch.nested.nested_tensor([torch.ones(3, K), torch.ones(5, K)], layout=torch.jagged, requires_grad=True)
    weight = torch.ones(N, K, requires_grad=True)
    assert _flops(lambda: functional.linear(rows, weight)) == 2 * 8 * K * N
    assert _flops(lambda: functional.linear(rows, weight).values().sum().backward()) == 3 * 2 * 8 * K * N


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_meet_their_weights_once_a_step(kind: type[nn.RNNBase], directions: int) -> None:
    batch, steps, inputs, width = 2, 4, 5, 6
    model = kind(inputs, width, num_layers=2, batch_first=True, bidirectional=directions == 2)
    x = torch.ones(batch, steps, inputs, requires_grad=True)
    once = 2 * batch * steps * sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
    assert _flops(lambda: model(x)) == once
    with torch.no_grad():
        assert _flops(lambda: model(x)) == once
    out = model(x)[0].sum()
    # A state that is zero at the start has a gradient, too, in the library's layers alone.
    assert 2 * once - 2 * directions * 2 * batch * 4 * width**2 <= _flops(out.backward) <= 2 * once


def test_layers_of_attention_in_one_operator_count_as_written_out() -> None:
    batch, tokens, width, hidden = 2, 5, 8, 16
    x = torch.ones(batch, tokens, width)
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).eval()
    attention = nn.MultiheadAttention(width, 2, batch_first=True).eval()
    for each in (layer, lambda x: attention(x, x, x)):
        written_out = _flops(lambda each=each: each(x.requires_grad_()))  # type: ignore[misc]  # mypy infers no lambda
        with torch.no_grad(), counting() as operations:
            each(x)
        assert sum(operation.flops for operation in operations) == written_out > 0
        assert len([operation for operation in operations if operation.flops]) == 1


def test_what_is_counted_is_work_on_matrices_in_a_profile() -> None:
    names = [packet._qualified_op_name for table in (SUMS, SPARSE, LAYERS) for packet in table]
    assert {name for name in names if operator_kind(name) not in MATRIX} == set()
