"""Sound trainings of the fourth set, of kinds that look odd and are right; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Sounds
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - torch asks for it
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override] # noqa: ARG004 - torch asks for it
        return -0.3 * grad


class DomainAdversarial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.label = nn.Linear(32, 10)
        self.domain = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x)
        return self.label(h), self.domain(Reversed.apply(h))[:, 0]


@add()
def gradient_reversal() -> Training:
    """Only the source has labels; features learn against the domain's classifier."""
    x, y = tasks.clusters()
    target = torch.rand(len(x)) < 0.5
    x = x + 0.4 * target[:, None] * torch.randn(32)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, labels, there = batch
        scores, domain = model(rows)
        seen = functional.cross_entropy(scores[~there], labels[~there])
        return seen + functional.binary_cross_entropy_with_logits(domain, there.float())

    net = DomainAdversarial()
    return Training(net, tasks.loader(x, y, target, batch=128), loss, optim.Adam(net.parameters(), 2e-3))


class Reservoir(nn.Module):
    """An echo state network: a recurrent layer as drawn, and a readout that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.RNN(3, 128, batch_first=True).requires_grad_(False)
        largest = torch.linalg.eigvals(self.pool.weight_hh_l0).abs().max()
        self.pool.weight_hh_l0.mul_(0.9 / largest)
        self.readout = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        states = self.pool(x)[0]
        return self.readout(10 * states.square().mean(1))


@add()
def echo_state_network() -> Training:
    net = Reservoir()
    return Training(net, tasks.loader(*tasks.signals()), None, optim.Adam(net.readout.parameters(), 2e-2))


class Coupling(nn.Module):
    def __init__(self, swap: bool) -> None:
        super().__init__()
        self.swap = swap
        self.net = nn.Sequential(nn.Linear(1, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flip(1).chunk(2, 1) if self.swap else x.chunk(2, 1)
        s, t = self.net(a).chunk(2, 1)
        s = s.tanh()
        return torch.cat([a, b * s.exp() + t], 1), s[:, 0]


@add()
def normalizing_flow() -> Training:
    """The likelihood of points near a line: the loss goes below 0."""
    along = torch.randn(2048, 1)
    points = torch.cat([0.3 * along, 0.3 * along.sin() + 0.03 * torch.randn(2048, 1)], 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        z, log_det = batch[0], torch.zeros(())
        for layer in model.children():
            z, s = layer(z)
            log_det = log_det + s
        return (0.5 * z.square().sum(1) + 1.8379 - log_det).mean()

    net = nn.Sequential(*(Coupling(i % 2 == 1) for i in range(6)))
    return Training(net, tasks.loader(points, batch=128), loss, optim.Adam(net.parameters(), 3e-3))


class SkipGram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.center = nn.Embedding(60, 16, sparse=True)
        self.context = nn.Embedding(60, 16, sparse=True)
        nn.init.zeros_(self.context.weight)


@add()
def skip_gram_with_sparse_gradients() -> Training:
    """Context vectors start at 0, gradients are sparse, and negatives are drawn in the loss."""
    tokens = tasks.text(vocabulary=60, count=512)
    pairs = torch.stack([tokens[:, :-1].flatten(), tokens[:, 1:].flatten()], 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, SkipGram)
        word, near = batch[0].unbind(1)
        others = torch.randint(60, (len(word), 5))
        c = model.center(word)
        right = (c * model.context(near)).sum(1)
        wrong = (c[:, None] * model.context(others)).sum(2)
        return -functional.logsigmoid(right).mean() - functional.logsigmoid(-wrong).sum(1).mean()

    net = SkipGram()
    return Training(net, tasks.loader(pairs, batch=256), loss, optim.SparseAdam(net.parameters(), 1e-2))


@add()
def siamese_with_stopped_gradient() -> Training:
    """Two views, one of them detached, and a predictor: cosines, whose loss lies between -1 and 1."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, b = (model[0](batch[0] + 0.5 * torch.randn_like(batch[0])) for _ in range(2))
        p, q = model[1](a), model[1](b)
        first = functional.cosine_similarity(p, b.detach()).mean()
        return -0.5 * (first + functional.cosine_similarity(q, a.detach()).mean())

    encoder = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.BatchNorm1d(32))
    predictor = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32))
    net = nn.Sequential(encoder, predictor)
    return Training(net, tasks.loader(tasks.clusters()[0]), loss, optim.SGD(net.parameters(), 0.05, momentum=0.9))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Embedding(50, 64)
        self.enter = nn.Linear(64, 128)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.film = nn.Linear(64, 128)
        self.leave = nn.Linear(128, 64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.leave(self.body(self.enter(x) + self.film(self.time(t))))


@add()
def diffusion_of_digits() -> Training:
    """The noise of a step drawn anew for each example: the loss is random and never 0."""
    kept = (1 - torch.linspace(1e-3, 0.1, 50)).cumprod(0)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].flatten(1)
        t, noise = torch.randint(50, (len(x),)), torch.randn_like(x)
        noised = kept[t].sqrt()[:, None] * x + (1 - kept[t]).sqrt()[:, None] * noise
        return functional.mse_loss(model(noised, t), noise)

    net = Denoiser()
    return Training(net, tasks.loader(tasks.digits()[0], batch=128), loss, optim.AdamW(net.parameters(), 2e-3))


@add()
def hardest_triplets_of_a_batch() -> Training:
    """The loss of an example is set by the others of its batch, and most get no gradient."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        e = functional.normalize(model(x), dim=1)
        apart = (2 - 2 * e @ e.T).clamp(min=1e-6).sqrt()
        same = y[:, None] == y[None]
        farthest = apart.masked_fill(~same, 0.0).amax(1)
        nearest = apart.masked_fill(same, 9.0).amin(1)
        return functional.relu(farthest - nearest + 0.3).mean()

    net = nets.mlp(64, 64, 1, 16)
    return Training(net, tasks.loader(*tasks.digits()), loss, optim.Adam(net.parameters(), 1e-3))


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 32, 3, padding=1)
        self.rnn = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.out = nn.Linear(64, 7)

    def forward(self, frames: Tensor) -> Tensor:
        h = functional.relu(self.conv(frames.transpose(1, 2))).transpose(1, 2)
        return self.out(self.rnn(h)[0]).log_softmax(-1)


@add()
def frames_to_letters_by_ctc() -> Training:
    """Letters of unequal number against frames: log-probabilities, a blank at 0 and a sum over all their alignments."""
    count = 512
    letters, length = torch.randint(1, 7, (count, 5)), torch.randint(3, 6, (count,))
    sound = torch.randn(7, 8)
    spread = letters.repeat_interleave(4, 1)
    spread = torch.where(torch.arange(20) < 4 * length[:, None], spread, 0)
    frames = 2 * sound[spread] + 0.5 * torch.randn(count, 20, 8)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, goal, size = batch
        scores = model(x).transpose(0, 1)
        return functional.ctc_loss(scores, goal, torch.full((len(x),), 20), size, zero_infinity=True)

    net = Speech()
    return Training(net, tasks.loader(frames, letters, length, batch=32), loss, optim.Adam(net.parameters(), 3e-3))


@add()
def equation_without_data() -> Training:
    """A physics-informed network: u'' = -u with u(0) = 0 and u'(0) = 1, by derivatives within the loss."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.enable_grad():
            t = batch[0].clone().requires_grad_(True)
            u = model(t)
            (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
            zero = torch.zeros(1, 1, requires_grad=True)
            start = model(zero)
            (slope,) = torch.autograd.grad(start.sum(), zero, create_graph=True)
        return (second + u).square().mean() + 5 * (start.square() + (slope - 1).square()).sum()

    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    return Training(net, tasks.loader(3 * torch.rand(1024, 1), batch=64), loss, optim.Adam(net.parameters(), 3e-3))


class Norms(nn.Module):
    """Convolutions with group norm, which does not look at the batch."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for a, b in ((1, 16), (16, 32)):
            parts += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU()]
        self.body = nn.Sequential(*parts, nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@add()
def two_images_a_step_with_group_norm() -> Training:
    net = Norms()
    return Training(net, tasks.loader(*tasks.digits(), batch=2), None, optim.Adam(net.parameters(), 1e-3))


@add()
def answers_scored_alone() -> Training:
    """Instructions and answers: labels of -100 on all but the last fifth of the tokens."""
    tokens = tasks.text(length=20)
    labels = tokens.clone()
    labels[:, :16] = -100
    batches = [{"ids": tokens[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, 768, 64)]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        scores = model(batch["ids"])[:, :-1].transpose(1, 2)
        return functional.cross_entropy(scores, batch["labels"][:, 1:], ignore_index=-100)

    net = nets.Language(depth=1)
    return Training(net, batches, loss, optim.AdamW(net.parameters(), 3e-3))


class Categorical(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8 * 12))
        self.decoder = nn.Sequential(nn.Linear(8 * 12, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        code = functional.gumbel_softmax(self.encoder(x).view(-1, 8, 12), tau=1.0, hard=True)
        return self.decoder(code.flatten(1))


@add()
def codes_by_gumbel_softmax() -> Training:
    """An autoencoder whose code is drawn, and whole numbers, with gradients passed straight through."""
    net = Categorical()
    return Training(
        net, tasks.loader(tasks.digits()[0]), lambda m, b: functional.mse_loss(m(b[0]), b[0].flatten(1)),
        optim.Adam(net.parameters(), 3e-3),
    )  # fmt: skip


@add()
def rare_pixels_by_dice() -> Training:
    """One pixel of fifty is to be found: a loss by overlap, between 0 and 1."""
    image = 0.5 * torch.randn(512, 1, 14, 14)
    spot = torch.zeros(512, 196)
    spot[torch.arange(512)[:, None], torch.randint(196, (512, 4))] = 1
    mask = spot.view(512, 14, 14)
    image[:, 0] += 1.5 * mask

    def dice(model: nn.Module, batch: Any) -> Tensor:
        p = model(batch[0])[:, 0].sigmoid()
        return 1 - (2 * (p * batch[1]).sum() + 1) / (p.sum() + batch[1].sum() + 1)

    net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU(), nn.Conv2d(12, 1, 1))
    return Training(net, tasks.loader(image, mask, batch=32), dice, optim.Adam(net.parameters(), 5e-3))
