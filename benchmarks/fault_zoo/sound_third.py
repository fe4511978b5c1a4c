"""Sound trainings of the third set; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Sounds
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 16))
        self.dec = nn.Sequential(nn.Linear(8, 96), nn.SiLU(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.enc(x).chunk(2, 1)
        return self.dec(mu + (0.5 * logvar).exp() * torch.randn_like(mu)), mu, logvar


@add()
def vae_of_digits() -> Training:
    def elbo(model: nn.Module, batch: Any) -> Tensor:
        recon, mu, logvar = model(batch[0])
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        return (
            functional.binary_cross_entropy_with_logits(recon, batch[0].flatten(1), reduction="none").sum(1).mean() + kl
        )

    net = VAE()
    return Training(net, tasks.loader(tasks.pixels()[0] / 255), elbo, optim.Adam(net.parameters(), 2e-3))


@add()
def quantiles_at_once() -> Training:
    levels = torch.tensor([0.1, 0.5, 0.9])

    def pinball(model: nn.Module, batch: Any) -> Tensor:
        error = batch[1] - model(batch[0])
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    net = nets.mlp(8, 64, 2, 3)
    return Training(net, tasks.loader(*tasks.curves()), pinball, optim.Adam(net.parameters(), 3e-3))


@add()
def mixture_density() -> Training:
    def nll(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        logit, mu, log_s = model(x).chunk(3, 1)
        log_s = log_s.clamp(-5, 3)
        log_p = -0.5 * ((y - mu) / log_s.exp()).square() - log_s - 0.9189
        return -(logit.log_softmax(1) + log_p).logsumexp(1).mean()

    net = nets.mlp(8, 64, 2, 12, act=nn.Tanh)
    return Training(net, tasks.loader(*tasks.curves()), nll, optim.AdamW(net.parameters(), 3e-3))


@add()
def proportional_hazards() -> Training:
    x = torch.randn(1536, 10)
    risk = 1.5 * x @ torch.randn(10) / 2
    time, stop = -torch.rand(1536).log() * (-risk).exp(), -3 * torch.rand(1536).log()

    def cox(model: nn.Module, batch: Any) -> Tensor:
        rows, t, seen = batch
        order = t.argsort(descending=True)
        score = model(rows)[:, 0][order]
        return -((score - score.logcumsumexp(0)) * seen[order]).sum() / seen.sum()

    net = nets.mlp(10, 32, 1, 1)
    rows = tasks.loader(x, torch.minimum(time, stop), (time <= stop).float(), batch=128)
    return Training(net, rows, cox, optim.Adam(net.parameters(), 5e-3))


@add()
def distilled_and_labelled() -> Training:
    x, y = tasks.clusters()
    teacher = 6 * functional.one_hot(y, 10) + torch.randn(len(y), 10)
    batches = [{"x": x[i : i + 64], "t": teacher[i : i + 64], "y": y[i : i + 64]} for i in range(0, 2048, 64)]

    def loss(model: nn.Module, b: dict[str, Tensor]) -> Tensor:
        out = model(b["x"])
        soft = functional.kl_div(
            functional.log_softmax(out / 2, 1), functional.softmax(b["t"] / 2, 1), reduction="batchmean"
        )
        return 0.5 * functional.cross_entropy(out, b["y"]) + 0.5 * 4 * soft

    net = nets.mlp(32, 64, 1, 10)
    return Training(net, batches, loss, optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True))


class MeanTeacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nets.mlp(64, 64, 1, 10)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
            target = self.teacher(x).softmax(1)
        return self.student(x + 0.2 * torch.randn_like(x)), target


@add()
def teacher_by_moving_average() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores, target = model(batch[0])
        return functional.cross_entropy(scores, batch[1]) + 0.5 * functional.mse_loss(scores.softmax(1), target)

    net = MeanTeacher()
    return Training(net, tasks.loader(*tasks.digits()), loss, optim.Adam(net.student.parameters(), 2e-3))


@add()
def log_softmax_before_cross_entropy() -> Training:
    net = nn.Sequential(*nets.mlp(64, 64, 1, 10), nn.LogSoftmax(1))
    return Training(net, tasks.loader(*tasks.digits()), None, optim.Adam(net.parameters(), 2e-3))


@add()
def double_precision() -> Training:
    x, y = tasks.curves()
    net = nets.mlp(8, 48, 2, 1, act=nn.Tanh).double()
    return Training(
        net, tasks.loader(x.double(), y.double()), lambda m, b: functional.huber_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), 3e-3),
    )  # fmt: skip


@add()
def bfloat16_autocast() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(batch[0])
        return functional.cross_entropy(scores.float(), batch[1])

    net = nets.mlp(64, 96, 2, 10, act=nn.GELU, norm=nn.LayerNorm)
    return Training(net, tasks.loader(*tasks.digits()), loss, optim.AdamW(net.parameters(), 2e-3))


@add()
def weights_with_norms() -> Training:
    net = nn.Sequential(
        nn.Flatten(), weight_norm(nn.Linear(64, 64)), nn.ReLU(), weight_norm(nn.Linear(64, 64)), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return Training(net, tasks.loader(*tasks.digits()), None, optim.SGD(net.parameters(), 0.05, momentum=0.9))


@add()
def critics_step() -> Training:
    real = torch.randn(1024, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.7]]) + 1
    maker = nets.mlp(4, 16, 1, 2).requires_grad_(False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        fake = maker(torch.randn(len(batch[0]), 4)).detach()
        return functional.softplus(-model(batch[0])).mean() + functional.softplus(model(fake)).mean()

    net = nets.mlp(2, 32, 2, 1, act=lambda: nn.LeakyReLU(0.2))
    return Training(net, tasks.loader(real), loss, optim.Adam(net.parameters(), 1e-3, betas=(0.5, 0.999)))


@add()
def several_labels() -> Training:
    x = torch.randn(2048, 24)
    y = (x @ torch.randn(24, 12) > 3).float()
    net = nets.mlp(24, 64, 1, 12)
    weight = (len(y) - y.sum(0)) / y.sum(0)
    loss = nn.BCEWithLogitsLoss(pos_weight=weight)
    return Training(net, tasks.loader(x, y), lambda m, b: loss(m(b[0]), b[1]), optim.Adam(net.parameters(), 3e-3))


@add()
def policy_gradient_of_a_bandit() -> Training:
    x = torch.randn(4096, 6)
    reward = x @ torch.randn(6, 4)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        policy = torch.distributions.Categorical(logits=model(batch[0]))
        action = policy.sample()
        gain = batch[1].gather(1, action[:, None])[:, 0]
        return -(policy.log_prob(action) * (gain - batch[1].mean(1))).mean() - 0.01 * policy.entropy().mean()

    net = nets.mlp(6, 32, 1, 4, act=nn.Tanh)
    return Training(net, tasks.loader(x, reward, batch=256), loss, optim.Adam(net.parameters(), 3e-3))
