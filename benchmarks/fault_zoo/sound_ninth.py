"""Sound trainings of the ninth set, in architecture, gradient and steps; written without a look at the checks."""

# ruff: noqa: D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import next_token, square
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add

Closure = Callable[[], float] | None


class Excited(nn.Module):
    """Channels weighed by what the whole image holds, behind filters of one channel each."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.depth, self.point = nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.Conv2d(wide, wide, 1)
        self.norm = nn.GroupNorm(4, wide)
        self.squeeze = nn.Sequential(
            nn.Linear(wide, wide // 4), nn.ReLU(), nn.Linear(wide // 4, wide), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = functional.hardswish(self.norm(self.point(self.depth(x))))
        return x + h * self.squeeze(h.mean((2, 3)))[:, :, None, None]


@add()
def channels_weighed_by_the_whole_image() -> Training:
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.Hardswish(), Excited(24), Excited(24),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip
    return Training(net, tasks.loader(*tasks.digits(), batch=32), None, optim.RMSprop(net.parameters(), lr=2e-3))


class Linearly(nn.Module):
    """Attention whose kernel is a product of positive features, so that a sum over keys is taken once."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.mixed, self.out, self.norm = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide), nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mixed(self.norm(x)).chunk(3, -1)
        query, key = functional.elu(query) + 1, functional.elu(key) + 1
        held = key.mT @ value
        weight = (query * key.sum(1, keepdim=True)).sum(-1, keepdim=True)
        return x + self.out(query @ held / (weight + 1e-6))


@add()
def lines_by_attention_without_a_softmax() -> Training:
    kind = torch.randint(6, (1024,))
    ids = torch.where(torch.rand(1024, 12) < 0.3, 9 * kind[:, None], 0) + torch.randint(9, (1024, 12))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.blocks = nn.Embedding(54, 32), nn.Sequential(Linearly(32), Linearly(32))
            self.head = nn.Linear(32, 6)

        def forward(self, seen: Tensor) -> Tensor:
            return self.head(self.blocks(self.words(seen)).mean(1))

    net = Net()
    return Training(net, tasks.loader(ids, kind, batch=32), None, optim.AdamW(net.parameters(), lr=3e-3))


class Tree(nn.Module):
    """A tree of seven soft turns and eight leaves: each row is told by a mixture of leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.turns, self.leaves = nn.Linear(24, 7), nn.Parameter(0.1 * torch.randn(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        left = self.turns(x).sigmoid()
        share = torch.ones(len(x), 1)
        for depth in range(3):
            here = left[:, 2**depth - 1 : 2 ** (depth + 1) - 1]
            share = torch.stack([share * here, share * (1 - here)], 2).flatten(1)
        return (share @ self.leaves.softmax(1)).log()


@add()
def tree_of_soft_turns() -> Training:
    x, kind = tasks.clusters(classes=6, features=24, spread=0.5)
    net = Tree()
    return Training(
        net, tasks.loader(x, kind), lambda m, b: functional.nll_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=5e-2),
    )  # fmt: skip


class Bumps(nn.Module):
    """A function as a sum of forty bumps around centres that are learnt, and so are their widths."""

    def __init__(self, near: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(near[:40].clone())
        self.log_width, self.height = nn.Parameter(torch.full((40,), 0.7)), nn.Parameter(0.1 * torch.randn(40, 1))
        self.slope = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        away = torch.cdist(x, self.centres).square()
        return (-away / (2 * self.log_width.exp().square())).exp() @ self.height + self.slope(x)


@add()
def function_as_a_sum_of_bumps() -> Training:
    x, y = tasks.curves(features=4)
    net = Bumps(x)
    return Training(net, tasks.loader(x, y), square, optim.Adam(net.parameters(), lr=2e-2))


class Past(nn.Module):
    """A filter that sees what came before only, at twice the step of the one below."""

    def __init__(self, into: int, out: int, step: int) -> None:
        super().__init__()
        self.step = step
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(into, out, 2, dilation=step))
        self.skip = nn.Conv1d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(functional.pad(x, (self.step, 0))) + self.skip(x)).relu()


@add()
def series_by_filters_of_the_past() -> Training:
    x = torch.randn(1024, 2, 24)
    y = (x[:, :1].cumsum(2) * 0.3).tanh() + 0.5 * x[:, 1:].roll(3, 2)
    y[..., :3] = 0
    net = nn.Sequential(Past(2, 24, 1), Past(24, 24, 2), Past(24, 24, 4), Past(24, 24, 8), nn.Conv1d(24, 1, 1))
    return Training(net, tasks.loader(x, y, batch=32), square, optim.Adam(net.parameters(), lr=3e-3))


class Pointing(nn.Module):
    """The place of the item that is asked for: what is told are scores of places, and there are no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.read = nn.Embedding(30, 16), nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.ask = nn.Linear(16, 48)

    def forward(self, items: Tensor, asked: Tensor) -> Tensor:
        return (self.read(self.item(items))[0] @ self.ask(self.item(asked)).unsqueeze(2))[..., 0] / 48**0.5


@add()
def place_of_the_item_that_is_asked_for() -> Training:
    items = torch.rand(1024, 30).argsort(1)[:, :10]
    place = torch.randint(10, (1024,))
    net = Pointing()
    rows = tasks.loader(items, items[torch.arange(1024), place], place, batch=32)
    return Training(
        net, rows, lambda m, b: functional.cross_entropy(m(*b[:2]), b[2]), optim.Adam(net.parameters(), lr=1e-2)
    )


@add()
def vital_signs_of_which_half_were_not_taken() -> Training:
    """Series with gaps: a value that was not taken is 0, and a second input says so; half of all inputs are 0."""
    truth = 0.8 * torch.randn(1024, 12, 4).cumsum(1)
    ill = (truth[:, -1, 0] - truth[:, 0, 1] > 0).long()
    taken = torch.rand(1024, 12, 4) < 0.5
    x = torch.cat([tasks.standardized(truth) * taken, taken.float()], 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 2)

        def forward(self, seen: Tensor) -> Tensor:
            return self.head(self.rnn(seen)[0].mean(1))

    net = Net()
    return Training(net, tasks.loader(x, ill, batch=32), None, optim.Adam(net.parameters(), lr=5e-3))


class Additive(nn.Module):
    """One small network a feature, whose answers add up: nothing ties a feature to another."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1)) for _ in range(6))
        self.base = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.base + torch.cat([part(each) for part, each in zip(self.parts, x.split(1, 1), strict=True)], 1).sum(
            1
        )


@add()
def one_network_a_feature() -> Training:
    x = torch.randn(2048, 6)
    y = tasks.standardized((2 * x[:, 0]).sin() + x[:, 1].abs() - x[:, 2] + 0.5 * x[:, 3].square())
    net = Additive()
    return Training(net, tasks.loader(x, y), square, optim.Adam(net.parameters(), lr=1e-2))


class Splats(nn.Module):
    """An image as sixty spots, each with a place, a size and a shade."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.size = nn.Parameter(torch.rand(60, 2)), nn.Parameter(torch.full((60,), -2.5))
        self.shade = nn.Parameter(0.3 * torch.randn(60))

    def forward(self, at: Tensor) -> Tensor:
        away = torch.cdist(at, self.place) / self.size.exp()
        return (-0.5 * away.square()).exp() @ self.shade


@add()
def image_as_sixty_spots() -> Training:
    image = functional.interpolate(torch.randn(1, 1, 7, 7), size=32, mode="bicubic")[0, 0]
    grid = torch.linspace(0, 1, 32)
    at = torch.cartesian_prod(grid, grid)
    net = Splats()
    return Training(net, tasks.loader(at, image.flatten(), batch=256), square, optim.Adam(net.parameters(), lr=2e-2))


class Growing(nn.Module):
    """A map that grows out of one cell by a local rule, which starts by changing nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.change = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 8, 1, bias=False)
        nn.init.zeros_(self.change.weight)

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(8):
            state = state + self.change(self.see(state).relu())
        return state[:, :1]


@add()
def shapes_that_grow_by_a_local_rule() -> Training:
    shape = torch.randint(2, (256,))
    grid = torch.arange(9.0) - 4
    ring = ((grid[:, None].square() + grid.square()).sqrt() - 3).abs() < 0.8
    cross = (grid[:, None].abs() < 1) | (grid.abs() < 1)
    target = torch.stack([ring, cross]).float()[shape].unsqueeze(1)
    seed = torch.zeros(256, 8, 9, 9)
    seed[torch.arange(256), 1 + shape, 4, 4] = 1
    net = Growing()
    return Training(net, tasks.loader(seed, target, batch=8), square, optim.Adam(net.parameters(), lr=3e-3))


class Biased(nn.Module):
    """A decoder without places: scores fall with distance, and all heads share one key and one value."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 32)
        self.query, self.shared, self.out = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 32)
        self.norm_1, self.norm_2, self.norm_3 = (nn.RMSNorm(32) for _ in range(3))
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 32)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        query = self.query(self.norm_1(h)).unflatten(2, (4, 8)).transpose(1, 2)
        key, value = self.shared(self.norm_1(h)).unsqueeze(1).chunk(2, -1)
        place = torch.arange(ids.shape[1])
        away = place[:, None] - place
        slopes = 2.0 ** -torch.arange(1, 5).view(4, 1, 1)
        scores = (query @ key.mT / 8**0.5 - slopes * away).masked_fill(away < 0, -torch.inf)
        h = h + self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        x = self.norm_2(h)
        return self.head(self.norm_3(h + self.down(functional.silu(self.gate(x)) * self.up(x))))


@add()
def one_key_for_all_heads_and_a_slope_for_places() -> Training:
    net = Biased()
    rows = tasks.loader(tasks.text(length=14, count=1024, following=2), batch=32)
    return Training(net, rows, next_token, optim.NAdam(net.parameters(), lr=3e-3))


class Dropped(nn.Module):
    """A block that is left out for a row one time in five, and counts for more where it is not."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, 2 * wide), nn.GELU(), nn.Linear(2 * wide, wide))

    def forward(self, x: Tensor) -> Tensor:
        kept = (torch.rand(len(x), 1) < 0.8) / 0.8 if self.training else 1.0
        return x + kept * self.branch(x)


@add()
def blocks_that_a_row_skips_one_time_in_five() -> Training:
    net = nn.Sequential(nn.Linear(32, 48), *(Dropped(48) for _ in range(4)), nn.LayerNorm(48), nn.Linear(48, 10))
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.RAdam(net.parameters(), lr=3e-3))


class Largest(nn.Module):
    """The largest of three linear maps, in place of an activation."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.maps = nn.Linear(into, 3 * out)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).unflatten(1, (3, -1)).amax(1)


class Centred(optim.SGD):
    """Momentum on gradients less their mean over what comes in."""

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        params: list[Any] = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in (each for each in params if each.ndim > 1):
            p.grad.sub_(p.grad.flatten(1).mean(1).view(-1, *[1] * (p.ndim - 1)))
        return super().step(closure)


@add()
def largest_of_three_by_centred_gradients() -> Training:
    net = nn.Sequential(nn.Flatten(), Largest(64, 32), Largest(32, 32), nn.Linear(32, 10))
    steps = Centred(net.parameters(), lr=0.05, momentum=0.9)
    return Training(net, tasks.loader(*tasks.digits()), None, steps)


@add()
def signs_and_sizes_of_their_own_on_one_batch() -> Training:
    """Resilient steps on all rows at once: each weight has a step of its own, and a gradient's size means nothing."""
    x, y = tasks.curves(count=512)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    return Training(net, [[x, y]], square, optim.Rprop(net.parameters(), lr=1e-3))
