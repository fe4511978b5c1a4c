"""What people's modules take and return: the factories that every command must take, or refuse in a sentence."""

from __future__ import annotations

import math
from collections import UserDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import Training

WIDTH, CLASSES = 12, 5
Scored = namedtuple("Scored", ["hidden", "logits"])


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def tokens(*shape: int) -> Tensor:
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(3))


class Images(nn.Module):
    """Fits what it is told."""

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class Doubles(Images):
    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = CLASSES) -> None:
        super().__init__(input_shape, classes)
        self.double()


class AnyKeyword(Images):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(kwargs.get("input_shape", (1, 28, 28)), kwargs.get("classes", CLASSES))


class LazyLayers(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(WIDTH), nn.ReLU(), nn.LazyLinear(CLASSES))


class Fixed(nn.Sequential):
    """Takes 28 x 28, whatever it is told."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, CLASSES))


class Rows(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(7, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
        self.example_input_array = floats(16, 7)


class OneOutput(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(7, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        self.example_input_array = floats(16, 7)


class Tagger(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(9, WIDTH), nn.Linear(WIDTH, CLASSES))
        self.example_input_array = tokens(4, 6)


class LazyRows(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(WIDTH), nn.Linear(WIDTH, CLASSES))
        self.example_input_array = floats(16, 7)


class Two(nn.Module):
    """Takes two tensors by position."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, WIDTH), nn.Linear(4, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.example_input_array: Any = (floats(16, 3), floats(16, 4))

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return self.head(self.left(left) + self.right(right))


class TwoInAList(Two):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = list(self.example_input_array)


class TwoByName(Two):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = {"right": floats(16, 4), "left": floats(16, 3)}


class TwoByMapping(Two):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = UserDict({"right": floats(16, 4), "left": floats(16, 3)})


class Graph(nn.Module):
    """Nodes and edges: the first dimensions are of different things."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.example_input_array = (floats(100, 6), torch.stack([torch.arange(99), torch.arange(1, 100)]))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        hidden = self.into(x).relu()
        return self.out(hidden.index_add(0, edges[1], hidden[edges[0]]))


class Dummies(Tagger):
    """As a Hugging Face model for text."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        del self.example_input_array

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": tokens(3, 5)}

    def forward(self, input_ids: Tensor) -> Any:
        return super().forward(input_ids)


class Pixels(nn.Module):
    """As a Hugging Face model for images, whose `dummy_inputs` are those of text."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
        self.config = SimpleNamespace(num_channels=3, image_size=10)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": tokens(3, 5)}

    def forward(self, pixel_values: Tensor) -> dict[str, Any]:
        return {"past": 3, "logits": self.body(pixel_values)}


class InATuple(Images):
    def forward(self, x: Tensor) -> Any:
        return None, (self.body(x).argmax(-1), super().forward(x))


class InADict(Images):
    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return {"hidden": hidden, "logits": self.head(hidden)}


class InANamedTuple(Images):
    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return Scored(hidden, self.head(hidden))


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class InADataclass(Images):
    def forward(self, x: Tensor) -> Any:
        return Output(super().forward(x))


class WithItsLoss(Images):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return Output(logits, logits.square().mean())


class LastOfAnLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, WIDTH, batch_first=True), nn.Linear(WIDTH, CLASSES)
        self.example_input_array = floats(8, 6, 5)

    def forward(self, x: Tensor) -> Any:
        outputs, state = self.lstm(x)
        return self.head(outputs[:, -1]), state


def pairs(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        yield floats(32, 7), tokens(32) % CLASSES


def from_a_list() -> Training:
    return Training(Rows(), list(pairs(3)))


def from_a_generator() -> Training:
    return Training(Rows(), pairs(3))


def from_a_loader() -> Training:
    x, y = next(pairs(1))
    data = torch.utils.data.TensorDataset(x, y)
    return Training(Rows(), torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))


def with_a_loss() -> Training:
    model = Two()

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["a"], batch["b"]) - batch["target"]).square().mean()

    batch = {"a": floats(16, 3), "b": floats(16, 4), "target": floats(16, CLASSES)}
    return Training(model, [batch], loss, torch.optim.AdamW(model.parameters()))


def of_language() -> Training:
    return Training(Tagger(), [(tokens(4, 6), tokens(4, 6) % CLASSES)])


# factory -> what the batch is said to be
TAKEN: dict[Any, str] = {
    Images: "float32 16 x 1 x 28 x 28",
    Doubles: "float64 16 x 1 x 28 x 28",
    AnyKeyword: "float32 16 x 1 x 28 x 28",
    LazyLayers: "float32 16 x 1 x 28 x 28",
    Fixed: "float32 16 x 1 x 28 x 28",
    Rows: "float32 16 x 7",
    OneOutput: "float32 16 x 7",
    Tagger: "int64 4 x 6",
    LazyRows: "float32 16 x 7",
    Two: "float32 16 x 3, float32 16 x 4",
    TwoInAList: "float32 16 x 3, float32 16 x 4",
    TwoByName: "right float32 16 x 4, left float32 16 x 3",
    TwoByMapping: "right float32 16 x 4, left float32 16 x 3",
    Graph: "float32 100 x 6, int64 2 x 99",
    Dummies: "input_ids int64 3 x 5",
    Pixels: "pixel_values float32 16 x 3 x 10 x 10",
    InATuple: "float32 16 x 1 x 28 x 28",
    InADict: "float32 16 x 1 x 28 x 28",
    InANamedTuple: "float32 16 x 1 x 28 x 28",
    InADataclass: "float32 16 x 1 x 28 x 28",
    WithItsLoss: "float32 16 x 1 x 28 x 28",
    LastOfAnLSTM: "float32 8 x 6 x 5",
    from_a_list: "float32 32 x 7, int64 32",
    from_a_generator: "float32 32 x 7, int64 32",
    from_a_loader: "float32 8 x 7, int64 8",
    with_a_loss: "a float32 16 x 3, b float32 16 x 4, target float32 16 x 5",
    of_language: "int64 4 x 6, int64 4 x 6",
}
