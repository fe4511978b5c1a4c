"""The list of operators against what is known by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from depthgauge.operations import counting

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
