"""The networks that are trained in every recipe, by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from depthgauge import models
from depthgauge.initialization import gaussian
from depthgauge.study import Case, Value

_SMALL: Mapping[str, Value] = {
    "network": "mlp", "activation": "relu", "depth": 2, "width": 32, "sigma_w": 2**0.5, "log2_shift": 0,
    "optimizer": "sgd", "lr": 0.02, "data": "digits", "batch": 32,
}  # fmt: skip
NETS: Mapping[str, Mapping[str, Value]] = {
    "SGD": _SMALL,
    "Adam": {**_SMALL, "optimizer": "adam", "lr": 0.001},
    "slow SGD": {**_SMALL, "lr": 0.002},
    "depth 10": {**_SMALL, "depth": 10, "lr": 0.005},
    "width 128": {**_SMALL, "width": 128, "data": "mnist5k", "batch": 64},
    "width 512": {**_SMALL, "width": 512, "data": "mnist5k", "batch": 256},
    "LeNet-5": {**_SMALL, "network": "lenet5", "depth": None, "width": None, "data": "mnist5k"},
    # One activation times a power of two, and divided by it again: in float32 the same training to the bit.
    "high activations": {**_SMALL, "sigma_w": 1.0, "lr": 0.04, "log2_shift": 14},
    "low activations": {**_SMALL, "log2_shift": -20},
    # Weights so large that gradients explode: with ReLU the signal does, too, with tanh it cannot.
    "exploding ReLU": {**_SMALL, "depth": 6, "sigma_w": 8.0},
    "exploding tanh": {**_SMALL, "activation": "tanh", "depth": 16, "sigma_w": 16.0},
}
EXPLODE = tuple(name for name in NETS if name.startswith("exploding"))
LABELS: Mapping[str, str] = {
    "SGD": "2 x 32 ReLU, SGD", "Adam": "2 x 32 ReLU, Adam", "slow SGD": "2 x 32 ReLU, SGD, lr / 10",
    "depth 10": "10 x 32 ReLU, SGD", "width 128": "2 x 128 ReLU, SGD",
    "width 512": "2 x 512 ReLU, SGD", "LeNet-5": "LeNet-5, SGD",
    "high activations": "2 x 32 ReLU, one activation x 2^14",
    "low activations": "2 x 32 ReLU, one activation x 2^-20", "exploding ReLU": "6 x 32 ReLU, sigma_w 8",
    "exploding tanh": "16 x 32 tanh, sigma_w 16",
}  # fmt: skip


def build(case: Case, input_shape: tuple[int, ...], seed: int, device: str) -> nn.Module:
    """The network of a case, in float32."""
    shift = 2.0 ** case.integer("log2_shift")
    model = models.build(
        case.text("network"), preset="small", input_shape=input_shape, classes=10, activation=case.text("activation"),
        init=gaussian(case.number("sigma_w")), seed=seed, device=device, **case.given("depth", "width"),
    )  # fmt: skip
    if shift != 1:
        hidden = model.get_submodule("hidden")
        assert isinstance(hidden, nn.Sequential)
        hidden.insert(1, Times(shift))
        hidden.insert(2, Times(1 / shift))
    return model


class Times(nn.Module):
    """Multiplies what it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of `x`."""
        return x * self.factor
