"""What a record says of itself: a row a layer, the worst first; a picture; a few lines."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import QuadMesh
from torch import nn

from depthgauge import probe
from depthgauge.probe.record import Record

pytestmark = pytest.mark.usefixtures("one_thread")


def layer(*weights: float) -> nn.Linear:
    made = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        made.weight[:] = torch.tensor([weights])
    return made


class Apart(nn.Module):
    """Layers side by side: what one loses reaches no other."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, module in layers.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([module(x) for module in self.children()]).sum()


def weights_of(model: nn.Module) -> Record:
    with probe.track(model, directions=("weight",)) as record:
        model(torch.ones(1, 4))
    return record


def test_the_worst_layer_is_first_and_says_what_happens() -> None:
    tiny, large = 2.0**-26, 2.0**17  # float16 rounds the first to zero and cannot hold the second
    record = weights_of(
        Apart(
            fitting=layer(1, 2, 3, 4), losing=layer(tiny, 1, 1, 1), broken=layer(math.nan, 1, 1, 1),
            fewer=layer(2.0**-20, 1, 1, 1), over=layer(large, large, 1, 1), losing_more=layer(tiny, tiny, tiny, 1),
        )
    )  # fmt: skip
    table = record.summary("fp16").set_index("layer")
    assert list(table.index) == ["broken", "over", "losing_more", "losing", "fewer", "fitting"]
    assert table["over"].tolist() == [0, 0.5, 0, 0, 0, 0]
    assert table["under"].tolist() == [0, 0, 0.75, 0.25, 0, 0]
    assert table["subnormal"].tolist() == [0, 0, 0, 0, 0.25, 0]
    assert table["not_finite"].tolist() == [1, 0, 0, 0, 0, 0]
    assert table.loc["over", "largest"] == large
    assert table["says"].tolist() == [
        "not finite: the weight in step 0",
        "50 % of the weight in step 0 overflows",
        "75 % of the weight in step 0 becomes zero",
        "25 % of the weight in step 0 becomes zero",
        "fits float16, 25 % of the weight in step 0 with fewer digits",
        "fits float16",
    ]
    assert record.summary("float32")["says"].tolist()[1:] == ["fits float32"] * 5


def test_a_loss_scale_lifts_gradients_and_the_worst_step_counts() -> None:
    model, sizes = nn.Linear(1, 1, bias=False), (2.0**-20, 2.0**-27, 2.0**-20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with probe.track(model, optimizer=optimizer, directions=("weight_gradient", "update")) as record:
        for size in sizes:
            optimizer.zero_grad()
            (size * model(torch.ones(1, 1))).sum().backward()
            optimizer.step()
    (row,) = record.summary("float16").to_dict("records")
    assert (row["direction"], row["parameter"], row["step"]) == ("weight_gradient", "weight", 1)
    assert (row["under"], row["tensors"]) == (1.0, 3)  # updates are no tensors that a format has to hold
    assert record.summary("float16", loss_scale=2.0**20)["says"].tolist() == ["fits float16"]


def test_a_record_tells_what_it_holds() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with probe.track(model, directions=("activation", "weight")) as record:
        assert repr(record) == "Record without rows"
        for _ in range(3):
            model(torch.ones(2, 4))
    told = str(record)
    # weights, biases and outputs of the layer, outputs of the rectifier
    assert told.startswith("Record of 12 tensors in 3 steps (0 to 2) of 2 layers: weight, activation\n")
    assert "every value is finite" in told
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    assert "first value that is not finite: weight of '0.weight' in step 0 (inf)" in repr(weights_of(model))


def test_the_picture_shows_each_layers_binades_and_leaves_nothing_behind() -> None:
    record = weights_of(Apart(first=layer(1, 1, 2, 2), second=layer(2.0**-30, 8, 8, 8)))
    before = dict(mpl.rcParams)
    canvas = record.plot("float16")
    assert not plt.get_fignums()
    assert dict(mpl.rcParams) == before
    axis = canvas.axes[0]
    assert axis.get_title() == "weight"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]
    (mesh,) = (each for each in axis.collections if isinstance(each, QuadMesh))
    shares = np.ma.filled(mesh.get_array(), 0.0)  # binades -30 to 3
    assert shares.shape == (2, 34)
    assert shares[0, 30:32].tolist() == [0.5, 0.5]
    assert (shares[1, 0], shares[1, 33]) == (0.25, 0.75)
    assert canvas.get_suptitle() == "Worst is layer 'second': 25 % of the weight in step 0 becomes zero"


def test_an_empty_record_has_an_empty_table_and_no_picture() -> None:
    record = weights_of(layer(1, 1, 1, 1))
    record.clear()
    table = record.summary()
    assert table.empty
    assert "says" in table
    with pytest.raises(ValueError, match="no rows that could be drawn"):
        record.plot()
    with pytest.raises(ValueError, match="float17"):
        record.summary("float17")
