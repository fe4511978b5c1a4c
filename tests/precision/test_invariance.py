"""Outputs of the first examples alone against those of the whole batch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from depthgauge import precision
from depthgauge.precision.invariance import sizes


class Product(nn.Module):
    """x @ b."""

    def __init__(self, b: Tensor) -> None:
        super().__init__()
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.b


def test_sizes_are_powers_of_two_and_their_neighbours() -> None:
    assert sizes(10) == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert sizes(1) == [1]
    assert sizes(256)[-4:] == [129, 255, 256][-4:] or sizes(256)[-3:] == [129, 255, 256]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_product_against_torch_itself(dtype: torch.dtype) -> None:
    a, b = torch.randn(64, 300, dtype=dtype), torch.randn(300, 40, dtype=dtype)
    frame = precision.batch_invariance(Product(b), a)
    assert list(frame.columns) == ["k", "equal", "largest_ulp", "note"]
    for row in frame.itertuples():
        alone, whole = a[: row.k] @ b, (a @ b)[: row.k]
        assert row.equal == torch.equal(alone, whole)
        assert row.largest_ulp == float(precision.ulp_distance(alone, whole).max())
    assert bool(frame["equal"].iloc[-1])


class ExactlyOff(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nextafter(x, torch.full_like(x, math.inf)) if len(x) < 4 else x.clone()


def test_one_unit_in_the_last_place_is_seen() -> None:
    frame = precision.batch_invariance(ExactlyOff(), torch.randn(6, 5))
    assert dict(zip(frame["k"], frame["largest_ulp"], strict=True)) == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0, 6: 0}
    assert frame["equal"].tolist() == [False, False, False, True, True, True]


def test_batch_normalization_depends_on_the_batch_in_training_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    nn.init.constant_(module[1].bias, 16.0)  # no output is near 0, where a unit in the last place is nothing
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(16, 4)
    frame = precision.batch_invariance(module.train(), x[:, :].repeat(1, 1))
    assert not frame["equal"][frame["k"] < 16].any()
    assert frame["largest_ulp"].iloc[1] > 1e4
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    module.eval()
    assert (precision.batch_invariance(module, x)["largest_ulp"] < 10).all()


class Summed(nn.Module):
    def forward(self, *, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"rows": x * mask[:, None], "loss": (x * mask[:, None]).sum()}


def test_structured_inputs_and_an_output_without_examples() -> None:
    frame = precision.batch_invariance(Summed(), {"x": torch.rand(5, 3) + 1, "mask": torch.ones(5)})
    assert frame["equal"].tolist() == [False, False, False, False, True]  # the sum is over the batch
    with pytest.raises(ValueError, match="no first dimension in common"):
        precision.batch_invariance(Summed(), {"x": torch.rand(5, 3), "mask": torch.ones(4)})


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch", [2, 3, 8])  # 2: the number of layers too
def test_hidden_states_have_the_batch_second(cell: type[nn.RNNBase], batch: int) -> None:
    module = cell(5, 6, num_layers=2, batch_first=True).double()
    frame = precision.batch_invariance(module, torch.randn(batch, 7, 5).double())
    assert (frame["largest_ulp"] < 10_000).all()  # sums in another order, and values near 0
    assert (frame["note"] == "").all()


class Arranged(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = x[:, None] + torch.arange(3)  # batch x 3
        return {
            "similar": x[:, None] * x, "by example": rows.flatten(), "side by side": rows.T.flatten(),
            "third": rows.T.expand(2, 3, -1), "some": x[x > 0], "none": torch.ones(4),
        }  # fmt: skip


def test_an_output_is_cut_along_each_dimension_of_the_batch() -> None:
    frame = precision.batch_invariance(Arranged(), torch.tensor([1.0, -2.0, 3.0, 4.0, -5.0]))
    assert (frame["largest_ulp"] == 0).all()
    assert frame["equal"].tolist() == [False, False, False, True, True]  # how many there are of "some" depends
    note = frame["note"].iloc[1]
    assert "output some: its shape is (1,) with 2 examples, (3,) with 5: not compared" in note
    assert "output none: no dimension is the batch's: compared as it is" in note
    assert "output side by side: dimension 0 holds several values of each example" in note
    assert "similar" not in note
    assert "third" not in note
    assert not frame["note"].iloc[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_distances_count_values(dtype: torch.dtype) -> None:
    one = torch.tensor(1.0, dtype=dtype)
    tiny = torch.nextafter(torch.zeros((), dtype=dtype), one)
    next_to_one = one + torch.finfo(dtype).eps
    pairs = [
        (one, one, 0),
        (one, next_to_one, 1),
        (tiny, -tiny, 2),
        (tiny * 0, -tiny * 0, 0),
        (one, 2 * one, 1 / torch.finfo(dtype).eps),
    ]
    for a, b, expected in pairs:
        assert float(precision.ulp_distance(a, b)) == float(precision.ulp_distance(b, a)) == expected
    nan, infinity = torch.tensor(math.nan, dtype=dtype), torch.tensor(math.inf, dtype=dtype)
    assert float(precision.ulp_distance(nan, nan)) == float(precision.ulp_distance(infinity, infinity)) == 0
    for a, b in ((nan, one), (infinity, one), (infinity, -infinity), (nan, infinity)):
        assert float(precision.ulp_distance(a, b)) == math.inf
