"""Further sound trainings of the third set; written without a look at the checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import next_token, square
from benchmarks.fault_zoo.planted_third import GCN, AttentionPool, SeriesEncoder, SparseMoE, StatefulLSTM, node_loss
from benchmarks.fault_zoo.planted_third_numbers import SignDescent
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


@add()
def encoder_of_series_with_warm_up() -> Training:
    net = SeriesEncoder(batch_first=True)
    adam = optim.AdamW(net.parameters(), 3e-3)
    optim.lr_scheduler.LinearLR(adam, 0.3, total_iters=20)
    return Training(net, tasks.loader(*tasks.signals(classes=3)), None, adam)


@add()
def pooled_by_attention() -> Training:
    net = AttentionPool(1)
    return Training(net, tasks.loader(*tasks.signals(classes=3)), None, optim.NAdam(net.parameters(), 2e-3))


@add()
def experts_one_each() -> Training:
    net = SparseMoE(False)
    return Training(net, tasks.loader(*tasks.clusters(spread=0.7)), None, optim.AdamW(net.parameters(), 2e-3))


@add()
def lstm_with_clipping_hook() -> Training:
    net = StatefulLSTM(detach=True)
    adam = optim.Adam(net.parameters(), 5e-3)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)

    adam.register_step_pre_hook(clip)
    return Training(net, tasks.loader(*tasks.signals(classes=3)), None, adam)


@add()
def nodes_of_a_ring() -> Training:
    y = torch.arange(150) // 50
    near = (torch.arange(150)[:, None] - torch.arange(150)[None]).abs() % 148 <= 2
    a = near.float()
    a = a / a.sum(1, keepdim=True)
    x = torch.randn(3, 16)[y] + torch.randn(150, 16)
    net = GCN(a)
    batch = {"x": x, "y": y, "mask": torch.rand(150) < 0.6}
    return Training(net, [batch], node_loss, optim.Adam(net.parameters(), 5e-3))


@add()
def descent_by_signs() -> Training:
    net = nets.mlp(64, 64, 2, 10, norm=nn.LayerNorm)
    return Training(net, tasks.loader(*tasks.digits()), None, SignDescent(net.parameters(), 3e-4))


@add()
def batches_from_a_generator() -> Training:
    seen = torch.Generator().manual_seed(3)
    mix = torch.randn(12, 5, generator=seen)

    def stream() -> Iterator[dict[str, Tensor]]:
        while True:
            x = torch.randn(64, 12, generator=seen)
            yield {"x": x, "y": (x @ mix).argmax(1)}

    net = nets.mlp(12, 64, 1, 5)
    kept = stream()
    batches = iter([next(kept) for _ in range(40)])
    return Training(
        net, batches, lambda m, b: functional.cross_entropy(m(b["x"]), b["y"]), optim.Adam(net.parameters(), 3e-3)
    )


@add()
def two_tower_ranking() -> Training:
    users, items = torch.randn(2048, 12), torch.randn(2048, 12)
    turn = torch.linalg.qr(torch.randn(12, 12)).Q
    items = users @ turn + 0.2 * items

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nets.mlp(12, 48, 1, 16)
            self.right = nets.mlp(12, 48, 1, 16)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return functional.normalize(self.left(a), dim=1) @ functional.normalize(self.right(b), dim=1).T

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = 10 * model(*batch)
        return functional.cross_entropy(scores, torch.arange(len(scores)))

    net = Towers()
    return Training(net, tasks.loader(users, items), loss, optim.Adam(net.parameters(), 3e-3))


@add()
def denoised_digits() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        (x,) = batch
        return functional.mse_loss(model(x + 0.3 * torch.randn_like(x)), x)

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 8, 3, 2, 1), nn.GELU(),
        nn.ConvTranspose2d(8, 16, 2, 2), nn.GELU(), nn.Conv2d(16, 1, 3, padding=1),
    )  # fmt: skip
    return Training(net, tasks.loader(tasks.digits()[0]), loss, optim.Adam(net.parameters(), 3e-3))


@add()
def smoothed_labels_focal() -> Training:
    def focal(model: nn.Module, batch: Any) -> Tensor:
        nll = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return ((1 - (-nll).exp()).square() * nll).mean()

    net = nets.convnet(8)
    return Training(net, tasks.loader(*tasks.digits()), focal, optim.AdamW(net.parameters(), 3e-3))


@add()
def counts_by_poisson() -> Training:
    x = torch.randn(2048, 8)
    y = torch.poisson((x @ torch.randn(8, 1) * 0.5).exp().clamp(max=30))
    net = nets.mlp(8, 32, 1, 1)
    return Training(
        net, tasks.loader(x, y), lambda m, b: functional.poisson_nll_loss(m(b[0]), b[1], full=True),
        optim.Adam(net.parameters(), 3e-3),
    )  # fmt: skip


@add()
def language_tied_and_grouped() -> Training:
    net = nets.Language()
    net.head.weight = net.embedding.weight
    nn.init.normal_(net.embedding.weight, std=0.1)
    matrices = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return Training(net, tasks.loader(tasks.text()), next_token, optim.AdamW(groups, 3e-3, betas=(0.9, 0.95)))


@add()
def regression_by_adagrad() -> Training:
    net = nets.mlp(8, 64, 2, 1, act=nn.Softplus)
    return Training(net, tasks.loader(*tasks.curves()), square, optim.Adagrad(net.parameters(), 0.03))
