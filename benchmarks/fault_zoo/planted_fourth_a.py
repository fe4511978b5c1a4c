"""Faults of the fourth set, in the architecture and on a gradient's way; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class Sine(nn.Module):
    def __init__(self, inputs: int, outputs: int, bound: float, omega: float = 30.0) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.omega = omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


class Siren(nn.Module):
    def __init__(self, width: int, divide: bool) -> None:
        super().__init__()
        bound = math.sqrt(6 / width) / (30.0 if divide else 1.0)
        self.net = nn.Sequential(
            Sine(2, width, 1 / 2), Sine(width, width, bound), Sine(width, width, bound), nn.Linear(width, 1)
        )

    def forward(self, coords: Tensor) -> Tensor:
        return self.net(coords)


@add(("signal", r"net.*|model"), source="https://github.com/lucidrains/siren-pytorch/issues/1")
def sines_not_divided_by_omega(fault: bool) -> Training:
    """Sines whose hidden weights are not divided by omega, 30: each layer's gradient is 30 times as large."""
    side = torch.linspace(-1, 1, 48)
    grid = torch.cartesian_prod(side, side)
    image = (5 * grid[:, :1]).sin() * (4 * grid[:, 1:]).cos() + (9 * grid.prod(1, keepdim=True)).sin()
    net = Siren(64, divide=not fault)
    return Training(
        net, tasks.loader(grid, image, batch=256), lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), 1e-3),
    )  # fmt: skip


class PolicyValue(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        wide = [2, 24, 24, 24, 24]
        self.trunk = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(wide))
        self.policy = nn.Conv2d(24, 1, 1)
        self.value = nn.Linear(24 * 36, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(m.weight, gain if m in [*self.trunk] else 0.01)
                nn.init.zeros_(m.bias)

    def forward(self, board: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.trunk:
            board = functional.relu(conv(board))
        return self.policy(board).flatten(1), self.value(board.flatten(1)).tanh()


def boards(count: int = 1536) -> tuple[Tensor, Tensor, Tensor]:
    stones = torch.randint(3, (count, 6, 6))
    planes = torch.stack([stones == 1, stones == 2], 1).float()
    friends = functional.conv2d(planes[:, :1], torch.ones(1, 1, 3, 3), padding=1)[:, 0]
    move = (friends - 100.0 * (stones > 0)).flatten(1).argmax(1)
    return planes, move, ((planes[:, 0] - planes[:, 1]).sum((1, 2)) / 5).tanh()[:, None]


@add(
    ("signal", r"trunk.*|policy.*|value.*|model"),
    source="In kind: the gain of 0.01 that suits a policy's last layer, given to every layer by one call of apply.",
)
def gain_of_the_policys_head_everywhere(fault: bool) -> Training:
    """Policy and value of a board: orthogonal weights of gain 0.01 in all layers, not in the heads alone."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        planes, move, result = batch
        logits, value = model(planes)
        return functional.cross_entropy(logits, move) + functional.mse_loss(value, result)

    net = PolicyValue(0.01 if fault else math.sqrt(2))
    return Training(net, tasks.loader(*boards()), loss, optim.SGD(net.parameters(), 0.005, momentum=0.9))


@add(
    ("signal", r"\d+.*|model"),
    source="https://github.com/rogertrullo/Receptive-Field-in-Pytorch/issues/3",
)
def autoencoder_of_sigmoids(fault: bool) -> Training:
    """An autoencoder of eight layers with a sigmoid after each: it learns the mean image and no more."""
    sizes = [64, 128, 64, 32, 16, 32, 64, 128]
    parts: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.Sigmoid() if fault else nn.ELU()]
    net = nn.Sequential(*parts, nn.Linear(128, 64))
    return Training(
        net, tasks.loader(tasks.digits()[0]), lambda m, b: functional.mse_loss(m(b[0]), b[0].flatten(1)),
        optim.Adam(net.parameters(), 2e-3),
    )  # fmt: skip


class GatedConv(nn.Module):
    def __init__(self, channels: int, dilation: int, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.pad = dilation
        self.conv = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(functional.pad(x, (self.pad, 0))).chunk(2, 1)
        h = self.mix(a.tanh() * b.sigmoid())
        return x + h if self.skip else h


@add(
    ("signal", r"\d+.*|model"),
    source="https://github.com/yilundu/improved_contrastive_divergence/issues/7",
)
def dilated_convolutions_without_skip(fault: bool) -> Training:
    """Sixteen gated dilated convolutions, whose block returns the branch and not its sum with the input."""
    blocks = [GatedConv(12, 2 ** (i % 4), skip=not fault) for i in range(16)]
    net = nn.Sequential(nn.Conv1d(3, 12, 1), *blocks, nn.Conv1d(12, 3, 1))
    waves = tasks.signals(length=32)[0].transpose(1, 2).contiguous()
    return Training(
        net, tasks.loader(waves, batch=16), lambda m, b: functional.mse_loss(m(b[0])[..., :-1], b[0][..., 1:]),
        optim.Adam(net.parameters(), 1e-3),
    )  # fmt: skip


class SRBlock(nn.Module):
    def __init__(self, scale_sum: bool) -> None:
        super().__init__()
        self.scale_sum = scale_sum
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale_sum:
            return (x + self.body(x)) * 0.1
        return x + self.body(x) * 0.1


@add(("signal", r".*blocks.*|head.*|tail.*|model"), source="https://github.com/krasserm/super-resolution/issues/25")
def residual_scale_after_the_sum(fault: bool) -> Training:
    """Super-resolution of twelve residual blocks: the factor of 0.1 is applied to the sum, not to the branch."""
    net = nn.Sequential()
    net.add_module("head", nn.Conv2d(1, 16, 3, padding=1))
    net.add_module("blocks", nn.Sequential(*(SRBlock(fault) for _ in range(12))))
    net.add_module("tail", nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2)))
    sharp = tasks.digits()[0]
    return Training(
        net, tasks.loader(functional.avg_pool2d(sharp, 2), sharp, batch=32),
        lambda m, b: functional.l1_loss(m(b[0]), b[1]), optim.Adam(net.parameters(), 1e-3),
    )  # fmt: skip


class TextCNN(nn.Module):
    def __init__(self, classes: int, softmax: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(120, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 24, k, padding=k // 2) for k in (3, 5))
        self.fc = nn.Linear(48, classes)
        self.softmax = softmax

    def forward(self, ids: Tensor) -> Tensor:
        e = self.embed(ids).transpose(1, 2)
        logits = self.fc(torch.cat([functional.relu(conv(e)).amax(2) for conv in self.convs], 1))
        return logits.softmax(dim=1) if self.softmax else logits


@add(("data", r"loss|model|fc"), source="https://github.com/lansinuote/Huggingface_Toturials/issues/6")
def text_classifier_returns_probabilities(fault: bool) -> Training:
    """A classifier of texts whose forward ends in a softmax, before a criterion that has its own."""
    topic = torch.randint(12, (1536,))
    own = 10 * topic[:, None] + torch.randint(10, (1536, 20))
    ids = torch.where(torch.rand(1536, 20) < 0.3, own, torch.randint(120, (1536, 20)))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    net = TextCNN(12, softmax=fault)
    return Training(
        net, tasks.loader(ids, topic), lambda m, b: criterion(m(b[0]), b[1]), optim.Adam(net.parameters(), 3e-3)
    )


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.tokens = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.neck = nn.Linear(32 * 16, 4)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(4, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2)
        return self.head(self.neck((h + self.tokens(h)).flatten(1)))


def set_trainable(module: nn.Module, value: bool, *, all_of_them: bool) -> None:
    for p in module.parameters():
        if all_of_them or p.requires_grad:
            p.requires_grad = value


@add(("signal", r"neck.*"), source="https://github.com/nttcslab/byol-a/issues/7")
def neck_never_unfrozen(fault: bool) -> Training:
    """A layer frozen for a phase, and a helper that passes over what is frozen when it is to train again."""
    net = Mixer()
    set_trainable(net.neck, False, all_of_them=True)
    set_trainable(net.neck, True, all_of_them=not fault)
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, tasks.loader(*tasks.digits()), None, optim.AdamW(trained, 3e-3))


class Tabular(nn.Module):
    def __init__(self, registered: bool) -> None:
        super().__init__()
        tables = {name: nn.Embedding(count, 2) for name, count in (("shop", 60), ("item", 90), ("day", 7))}
        self.tables: Any = nn.ModuleDict(tables) if registered else tables
        self.mlp = nn.Sequential(nn.Linear(6 + 4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def forward(self, row: dict[str, Tensor]) -> Tensor:
        found = [table(row[name]) for name, table in self.tables.items()]
        return self.mlp(torch.cat([*found, row["numbers"]], 1))[:, 0]


@add(
    ("signal", r"tables.*|mlp.*|model"),
    source="https://github.com/pyg-team/pytorch_geometric/issues/3604",
)
def embeddings_in_a_plain_dict(fault: bool) -> Training:
    """Sales by shop, item and day: the embeddings are in a dict that the module does not know."""
    count = 2048
    shop, item, day = torch.randint(60, (count,)), torch.randint(90, (count,)), torch.randint(7, (count,))
    numbers = torch.randn(count, 4)
    sales = torch.randn(60)[shop] + torch.randn(90)[item] + torch.randn(7)[day] + 0.5 * numbers[:, 0]
    columns = {"shop": shop, "item": item, "day": day, "numbers": numbers, "sales": sales}
    batches = [{name: each[i : i + 64] for name, each in columns.items()} for i in range(0, count, 64)]
    net = Tabular(registered=not fault)
    return Training(
        net, batches, lambda m, b: functional.mse_loss(m(b), b["sales"]), optim.Adam(net.parameters(), 1e-2)
    )


class TwoSources(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault
        self.series = nn.GRU(3, 24, batch_first=True)
        self.static = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2))
        self.join = nn.Sequential(nn.Linear(26, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        s = self.static(about)
        if self.fault:  # "so that it can be looked at"
            s = torch.from_numpy(s.detach().cpu().numpy()).to(x)
        return self.join(torch.cat([self.series(x)[0][:, -1], s], 1))[:, 0]


@add(("signal", r"static.*"), source="https://github.com/LianpoWang/SLIIF/issues/14")
def branch_through_numpy(fault: bool) -> Training:
    """Two sources of features, one of which goes through a NumPy array: its layers stay as drawn."""
    x, kind = tasks.signals()
    about = torch.randn(len(x), 20)
    target = 0.5 * kind + 2 * (about @ torch.randn(20) / 4).tanh()
    net = TwoSources(fault)
    return Training(
        net, tasks.loader(x, about, target), lambda m, b: functional.smooth_l1_loss(m(b[0], b[1]), b[2]),
        optim.Adam(net.parameters(), 3e-3),
    )  # fmt: skip


class Siamese(nn.Module):
    def __init__(self, tower: nn.Module, fault: bool) -> None:
        super().__init__()
        self.left = tower
        self.right = copy.deepcopy(tower) if fault else tower

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return 5 * functional.cosine_similarity(self.left(a), self.right(b))


@add(
    ("signal", r"left.*|right.*|model"),
    source="In kind: the second tower of a Siamese network made by deepcopy, where both are to be one.",
)
def towers_by_deepcopy(fault: bool) -> Training:
    """A Siamese network whose towers are meant to share their weights, and are two of equal values."""
    x, y = tasks.digits()
    order = y.argsort()
    other = torch.where(torch.rand(len(x)) < 0.5, torch.randperm(len(x)), order[(order.argsort() + 1) % len(x)])
    same = (y == y[other]).float()
    tower = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 16))
    net = Siamese(tower, fault)
    return Training(
        net, tasks.loader(x, x[other], same),
        lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0], b[1]), b[2]),
        optim.Adam(net.parameters(), 3e-3),
    )  # fmt: skip


class Stacked(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 40, num_layers=3, dropout=dropout, batch_first=True)
        self.out = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@add(
    ("data", r"rnn.*|model"),
    ("signal", r"rnn.*|model"),
    source="https://github.com/bonlime/keras-deeplab-v3-plus/issues/4",
)
def share_to_keep_between_recurrent_layers(fault: bool) -> Training:
    """Three recurrent layers with the share to keep, 0.99, as the share to drop between them."""
    keep_prob = 0.99
    net = Stacked(keep_prob if fault else 1 - keep_prob)
    return Training(net, tasks.loader(*tasks.signals()), None, optim.Adam(net.parameters(), 5e-3))


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.ReLU())
        self.cloud = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24))
        self.out = nn.Sequential(nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, points: Tensor) -> Tensor:
        return self.out(self.cloud(self.point(points).amax(2)))


@add(
    ("batch", r"cloud.*|out.*|batches|model"),
    ("data", r"cloud.*|out.*|batches|model"),
    ("signal", r"cloud.*|out.*"),
    source="https://github.com/google/automl/issues/881",
)
def clouds_two_at_a_time(fault: bool) -> Training:
    """Clouds of points, normalized over the batch after pooling, with batches of two clouds."""
    kind = torch.randint(3, (2048,))
    stretch = torch.tensor([[1.0, 1, 1], [1, 1, 0.3], [1.6, 0.6, 0.6]])[kind]
    points = (
        functional.normalize(torch.randn(2048, 3, 32), dim=1)
        * stretch[:, :, None]
        * (0.8 + 0.4 * torch.rand(2048, 1, 1))
    )
    net = PointNet()
    rows = tasks.loader(points, kind, batch=2 if fault else 32)
    return Training(net, rows, None, optim.Adam(net.parameters(), 2e-3))


def validate(net: nn.Module, x: Tensor, y: Tensor, *, back: bool) -> float:
    net.eval()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).float().mean()
    if back:
        net.train()
    else:
        net[-1].train()  # "only the classifier trains differently"
    return float(right)


@add(
    ("data", r"\d.*|model"),
    ("signal", r"\d.*|model"),
    source="https://github.com/wkentaro/pytorch-fcn/pull/56",
)
def features_left_in_eval_mode(fault: bool) -> Training:
    """A look at accuracy before training leaves twelve normalized layers in eval mode: nothing is normalized."""
    parts: list[nn.Module] = []
    for i in range(12):
        parts += [nn.Conv1d(3 if i == 0 else 20, 20, 3, padding=1, bias=False), nn.BatchNorm1d(20), nn.ReLU()]
    classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(20, 4))
    net = nn.Sequential(*parts, nn.AdaptiveMaxPool1d(1), nn.Flatten(), classifier)
    x, y = tasks.signals()
    x = x.transpose(1, 2).contiguous()
    validate(net, x[:256], y[:256], back=not fault)
    return Training(net, tasks.loader(x, y, batch=32), None, optim.SGD(net.parameters(), 0.05, momentum=0.9))
