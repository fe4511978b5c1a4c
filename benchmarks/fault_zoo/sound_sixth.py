"""Sound trainings of the sixth set, in architecture and gradient; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.utils import checkpoint

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.planted_sixth import squares
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


def fitted(net: nn.Module, x: Tensor, y: Tensor, epochs: int = 4) -> nn.Module:
    """The network, after some epochs of Adam."""
    optimizer = optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows, labels in zip(x.split(128), y.split(128), strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(net(rows), labels).backward()  # type: ignore[no-untyped-call] # torch's own
            optimizer.step()
    return net


class Probe(nn.Module):
    """A linear layer on a backbone that is frozen, statistics of its norms and all."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.probe = nn.Linear(32, 10)

    def train(self, mode: bool = True) -> Probe:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.probe(self.backbone(x))


@add()
def probe_on_a_frozen_backbone_in_eval() -> Training:
    x, y = tasks.digits()
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(),
    )  # fmt: skip
    fitted(nn.Sequential(body, nn.Linear(32, 5)), x, y % 5)
    net = Probe(body).train()
    return Training(net, tasks.loader(x, y), None, optim.SGD(net.probe.parameters(), lr=0.05, momentum=0.9))


class Bottleneck(nn.Module):
    """A small network beside a frozen layer that adds nothing until it has learnt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 8), nn.Linear(8, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(functional.gelu(self.down(x)))


@add()
def bottlenecks_that_add_nothing_at_first() -> Training:
    x, y = tasks.clusters()
    body = fitted(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), x, y)
    body.requires_grad_(False)
    assert isinstance(body, nn.Sequential)
    net = nn.Sequential(body[0], body[1], Bottleneck(64), body[2], body[3], Bottleneck(64), body[4])
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, tasks.loader(x.flip(1), y), None, optim.AdamW(trained, lr=5e-3))


class ThinScale(nn.Module):
    """A depthwise block whose branch is multiplied by a millionth at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(functional.gelu(self.up(h)))).permute(0, 3, 1, 2)


@add()
def branches_scaled_by_a_millionth() -> Training:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 2, stride=2), *(ThinScale(16) for _ in range(3)), nn.Flatten(), nn.Linear(256, 10)
    )
    return Training(net, tasks.loader(*tasks.digits(), batch=32), None, optim.AdamW(net.parameters(), lr=4e-3))


class Listener(nn.Module):
    """A frozen reader of words, with attention to pictures let in through a gate that starts shut."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 32).requires_grad_(False)
        self.read = nn.GRU(32, 32, batch_first=True).requires_grad_(False)
        self.look = nn.MultiheadAttention(32, 4, kdim=8, vdim=8, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(()))
        self.says = nn.Linear(32, 6)

    def forward(self, words: Tensor, picture: Tensor) -> Tensor:
        h = self.read(self.words(words))[0]
        h = h + self.gate.tanh() * self.look(h, picture, picture, need_weights=False)[0]
        return self.says(h.mean(1))


@add()
def gate_to_pictures_that_starts_shut() -> Training:
    kind = torch.randint(6, (1024,))
    picture = torch.randn(6, 8)[kind].unsqueeze(1) + 0.7 * torch.randn(1024, 5, 8)
    net = Listener()
    trained = [p for p in net.parameters() if p.requires_grad]
    rows = tasks.loader(torch.randint(20, (1024, 6)), picture, kind, batch=32)
    return Training(
        net, rows, lambda m, b: functional.cross_entropy(m(b[0], b[1]), b[2]), optim.AdamW(trained, lr=5e-3)
    )


class Translator(nn.Module):
    """One table for what is read, what is written and what scores it."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(40, 32)
        nn.init.normal_(self.source.weight, std=32**-0.5)
        self.target = self.source
        self.encode, self.decode = nn.GRU(32, 32, batch_first=True), nn.GRU(32, 32, batch_first=True)
        self.score = nn.Linear(32, 40, bias=False)
        self.score.weight = self.source.weight

    def forward(self, read: Tensor, written: Tensor) -> Tensor:
        state = self.encode(5 * self.source(read))[1]
        return self.score(5 * self.decode(5 * self.target(written), state)[0])


@add()
def one_table_in_three_places() -> Training:
    read = tasks.text(vocabulary=39, length=6, count=1024, following=2) + 1
    code = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(39) + 1])
    written = torch.cat([torch.zeros(1024, 1, dtype=torch.int64), code[read]], 1)
    net = Translator()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, b = batch
        return functional.cross_entropy(model(a, b[:, :-1]).flatten(0, 1), b[:, 1:].flatten())

    return Training(net, tasks.loader(read, written, batch=32), loss, optim.Adam(net.parameters(), lr=5e-3))


class Codes(nn.Module):
    """A codebook that no gradient moves: each code follows the mean of what chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 32))
        self.register_buffer("book", torch.randn(32, 8))
        self.register_buffer("count", torch.ones(32))
        self.register_buffer("total", self.book.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        chosen = functional.one_hot(torch.cdist(z, self.book).argmin(1), 32).to(z.dtype)
        if self.training:
            with torch.no_grad():
                self.count.lerp_(chosen.sum(0), 0.02)
                self.total.lerp_(chosen.T @ z, 0.02)
                self.book.copy_(self.total / (self.count.unsqueeze(1) + 1e-3))
        code = chosen @ self.book
        return self.decoder(z + (code - z).detach()), (z - code.detach()).square().mean()


@add()
def codebook_that_follows_means() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        back, commitment = model(batch[0])
        return functional.mse_loss(back, batch[0]) + 0.25 * commitment

    net = Codes()
    rows = tasks.loader(tasks.clusters(spread=0.3)[0])
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=3e-3))


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(8, 48), nn.Linear(48, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.SiLU(), nn.Dropout(0.1)) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + checkpoint.checkpoint(block, h, use_reentrant=False)
        return self.out(h)


@add()
def blocks_computed_twice_with_dropout() -> Training:
    net = Recomputed()
    return Training(net, tasks.loader(*tasks.curves()), squares, optim.AdamW(net.parameters(), lr=2e-3))


class Unitary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(5, 32)
        self.turn = parametrizations.orthogonal(nn.Linear(32, 32, bias=False))
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        with parametrize.cached():
            for step in x.unbind(1):
                h = functional.softshrink(self.turn(h) + self.inp(step), 0.05)
        return self.out(h)


@add()
def recurrence_kept_orthogonal() -> Training:
    sign = torch.randint(4, (1024,))
    x = 0.2 * torch.randn(1024, 12, 5)
    x[:, 0, :4] += functional.one_hot(sign, 4)
    net = Unitary()
    return Training(net, tasks.loader(x, sign, batch=32), None, optim.RMSprop(net.parameters(), lr=1e-3))


class Slopes(nn.Module):
    """Attention that knows places by penalties on distance, with a place to rest on that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(32, 32), nn.Linear(32, 32)
        self.qkv, self.back = nn.Linear(32, 96, bias=False), nn.Linear(32, 32, bias=False)
        self.rest = nn.Parameter(torch.zeros(4, 1, 1))
        far = torch.arange(19)[:, None] - torch.arange(19)
        bias = -far * 2.0 ** -torch.arange(1, 5)[:, None, None]
        self.register_buffer("bias", bias.masked_fill(far < 0, -math.inf))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(functional.layer_norm(x, (32,))).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / 8**0.5 + self.bias
        scores = torch.cat([scores, self.rest.expand(len(ids), 4, scores.shape[2], 1)], -1)
        mixed = scores.softmax(-1)[..., :-1] @ v
        return self.out(x + self.back(mixed.transpose(1, 2).flatten(2)))


@add()
def places_by_slopes_and_a_rest() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    net = Slopes()
    rows = tasks.loader(tasks.text(length=20), batch=32)
    return Training(net, rows, loss, optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.1))


class Bare(nn.Module):
    """Matrices and nothing else: no biases, no gains."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))
        self.last = nn.Linear(64, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        for layer in self.layers:
            h = h + functional.relu(layer(functional.rms_norm(h, (64,)))).square()
        return self.last(functional.rms_norm(h, (64,)))


@add()
def matrices_alone_by_muon() -> Training:
    net = Bare()
    return Training(net, tasks.loader(*tasks.digits()), None, optim.Muon(net.parameters(), lr=5e-3))


class Hidden(nn.Module):
    """Sees four of sixteen patches of an image and tells the others."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Linear(4, 32), nn.Parameter(0.5 * torch.randn(16, 32))
        self.unknown = nn.Parameter(torch.zeros(32))
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.pixels = nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Tensor:
        patches = functional.unfold(image, 2, stride=2).mT
        seen = torch.rand(patches.shape[:2]).argsort(1)[:, :4, None]
        h = (self.patch(patches) + self.place).gather(1, seen.expand(-1, -1, 32))
        whole = self.unknown + self.place.expand(len(image), -1, -1)
        whole = whole.scatter(1, seen.expand(-1, -1, 32), self.encoder(h))
        error = (self.pixels(self.decoder(whole)) - patches).square().mean(-1)
        hidden = torch.ones_like(error).scatter(1, seen[..., 0], 0.0)
        return (error * hidden).sum() / hidden.sum()


@add()
def patches_hidden_but_for_four() -> Training:
    net = Hidden()
    rows = tasks.loader(*tasks.digits(), batch=32)
    return Training(net, rows, lambda m, b: m(b[0]), optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.95)))


class Countries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(32, size) for name, size in (("a", 3), ("b", 5), ("c", 4))})

    def forward(self, x: Tensor, name: str) -> Tensor:
        return self.heads[name](self.body(x))


@add()
def one_head_of_three_a_batch() -> Training:
    net = Countries()
    names, batches = ("a", "b", "c"), []
    maps = {name: torch.randn(16, net.heads[name].out_features) for name in names}
    for i in range(60):
        x = torch.randn(64, 16)
        batches.append({"x": x, "name": names[i % 3], "y": (x @ maps[names[i % 3]]).argmax(1)})
    return Training(
        net, batches, lambda m, b: functional.cross_entropy(m(b["x"], b["name"]), b["y"]),
        optim.Adam(net.parameters(), lr=5e-3),
    )  # fmt: skip


class Oscillating(nn.Module):
    """A state of damped oscillators, driven by a series: a diagonal matrix in logarithms of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.linspace(-3.0, 0.0, 16))
        self.frequency = nn.Parameter(torch.linspace(0.0, 2.5, 16))
        self.drive = nn.Linear(3, 32)
        self.read = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1] - 1, -1, -1)[:, None]
        kernel = torch.exp(steps * torch.complex(-self.log_decay.exp(), self.frequency))
        drive = torch.view_as_complex(self.drive(x).unflatten(-1, (16, 2)))
        return self.read((drive * kernel).sum(1).abs())


@add()
def oscillators_driven_by_a_series() -> Training:
    net = Oscillating()
    slow = [net.log_decay, net.frequency]
    groups = [{"params": slow, "lr": 1e-3}, {"params": [*net.drive.parameters(), *net.read.parameters()]}]
    return Training(net, tasks.loader(*tasks.signals(), batch=32), None, optim.Adam(groups, lr=1e-2))
