"""Sound trainings of the fourth set, second hand, of kinds that look wrong; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


class SimSiam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(32, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32, bias=False),
            nn.BatchNorm1d(32, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(nn.Linear(32, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.predictor(z), z.detach()


@add()
def twins_of_which_one_is_detached() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        (p1, z1), (p2, z2) = (model(batch[0] + 0.5 * torch.randn_like(batch[0])) for _ in range(2))
        return -(functional.cosine_similarity(p1, z2) + functional.cosine_similarity(p2, z1)).mean() / 2

    net = SimSiam()
    rows = tasks.loader(tasks.clusters()[0], batch=128)
    return Training(net, rows, loss, optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4))


@add()
def wasserstein_critic_with_penalty() -> Training:
    angle = 6.28 * torch.rand(1024, 1)
    real = torch.cat([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(1024, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0]
        fake = 0.5 * torch.randn_like(x) + 1
        gap = model(fake).mean() - model(x).mean()
        with torch.enable_grad():
            between = torch.lerp(x, fake, torch.rand(len(x), 1)).requires_grad_()
            (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
            return gap + 10 * (slope.norm(dim=1) - 1).square().mean()

    net = nn.Sequential(nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
    return Training(net, tasks.loader(real), loss, optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.9)))


class Sine(nn.Module):
    def __init__(self, inputs: int, width: int, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        bound = 1 / inputs if first else (6 / inputs) ** 0.5 / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return (30 * self.linear(x)).sin()


@add()
def image_as_a_function_of_sines() -> Training:
    side = torch.linspace(-1, 1, 32)
    grid = torch.cartesian_prod(side, side)
    picture = torch.sin(8 * grid[:, :1] * grid[:, 1:]) * torch.cos(5 * grid[:, :1] + 3 * grid[:, 1:].square())
    net = nn.Sequential(Sine(2, 64, first=True), Sine(64, 64, first=False), nn.Linear(64, 1))
    nn.init.uniform_(net[2].weight, -((6 / 64) ** 0.5) / 30, (6 / 64) ** 0.5 / 30)
    return Training(
        net, [(grid, picture)], lambda m, b: functional.mse_loss(m(b[0]), b[1]), optim.Adam(net.parameters(), 1e-3)
    )


class Prompted(nn.Module):
    def __init__(self, language: Any, tokens: int, classes: int) -> None:
        super().__init__()
        self.language = language.requires_grad_(False)
        self.prompt = nn.Parameter(0.3 * torch.randn(tokens, language.config.n_embd))
        self.verdict = nn.Linear(language.config.n_embd, classes)

    def forward(self, ids: Tensor) -> Tensor:
        words = self.language.get_input_embeddings()(ids)
        hidden = self.language(inputs_embeds=torch.cat([words, self.prompt.expand(len(ids), -1, -1)], 1))
        return self.verdict(hidden.last_hidden_state[:, -1])


@add("transformers")
def prompt_learnt_for_a_frozen_gpt() -> Training:
    import transformers  # noqa: PLC0415 - may be missing

    language = transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=40, n_positions=24, n_embd=48, n_layer=2, n_head=4, initializer_range=0.15, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    ids = torch.randint(40, (1024, 12))
    net = Prompted(language.eval(), 4, 2)
    trained = [p for p in net.parameters() if p.requires_grad]
    rows = tasks.loader(ids, ((ids < 20).sum(1) > 6).long())
    return Training(net, rows, None, optim.AdamW(trained, 2e-2))


class TopK(nn.Module):
    def __init__(self, inputs: int, units: int, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.pre_bias = nn.Parameter(torch.zeros(inputs))
        self.encoder = nn.Linear(inputs, units)
        self.decoder = nn.Linear(units, inputs, bias=False)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        value, place = self.encoder(x - self.pre_bias).relu().topk(self.kept, 1)
        code = torch.zeros(len(x), self.encoder.out_features).scatter(1, place, value)
        return self.decoder(code) + self.pre_bias


@add()
def dictionary_of_a_few_units_each() -> Training:
    directions = functional.normalize(torch.randn(96, 32), dim=1)
    strength = torch.rand(4096, 96) * (torch.rand(4096, 96) < 0.04)
    net = TopK(32, 192, 6)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[0]).square().sum(1).mean()

    return Training(net, tasks.loader(strength @ directions, batch=256), loss, optim.Adam(net.parameters(), 3e-3))


class Coupling(nn.Module):
    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.net = nn.Sequential(nn.Linear(1, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        nn.init.zeros_(self.net[4].weight)
        nn.init.zeros_(self.net[4].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = (x[:, 1:], x[:, :1]) if self.turned else (x[:, :1], x[:, 1:])
        scale, shift = self.net(kept).chunk(2, 1)
        scale = 2 * torch.tanh(scale)
        moved = moved * scale.exp() + shift
        return torch.cat([moved, kept] if self.turned else [kept, moved], 1), scale[:, 0]


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(bool(i % 2)) for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        volume = torch.zeros(len(x))
        for coupling in self.couplings:
            x, scale = coupling(x)
            volume = volume + scale
        return -0.5 * x.square().sum(1) - 1.8379 + volume


@add()
def flow_of_couplings_that_start_at_zero() -> Training:
    angle = 3.14 * torch.rand(2048, 1)
    upper = torch.rand(2048, 1) < 0.5
    moons = torch.cat([angle.cos() + ~upper, torch.where(upper, angle.sin(), 0.5 - angle.sin())], 1)
    net = Flow()
    rows = tasks.loader(moons + 0.05 * torch.randn(2048, 2), batch=256)
    return Training(net, rows, lambda m, b: -m(b[0]).mean(), optim.Adam(net.parameters(), 3e-3))


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, potential: Tensor) -> Tensor:
        ctx.save_for_backward(potential)
        return (potential > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / (1 + 5 * ctx.saved_tensors[0].abs()).square()


class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drive = nn.Linear(64, 96)
        self.out = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        current = self.drive(x.flatten(1))
        potential, total = torch.zeros_like(current), torch.zeros(len(x), 10)
        for _ in range(8):
            potential = 0.8 * potential + current
            spikes = Spike.apply(potential - 1)
            potential = potential - spikes.detach()
            total = total + self.out(spikes)
        return total / 8


@add()
def neurons_that_spike() -> Training:
    net = Spiking()
    return Training(net, tasks.loader(*tasks.digits()), None, optim.Adam(net.parameters(), 3e-3))


class FourBits(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        step = self.weight.detach().abs().amax() / 7
        rounded = (self.weight / step).round().clamp(-7, 7) * step
        return functional.linear(input, self.weight + (rounded - self.weight).detach(), self.bias)


@add()
def weights_rounded_to_four_bits() -> Training:
    net = nn.Sequential(
        nn.Flatten(), FourBits(64, 96), nn.Hardtanh(), FourBits(96, 96), nn.Hardtanh(), FourBits(96, 10)
    )
    return Training(net, tasks.loader(*tasks.digits()), None, optim.SGD(net.parameters(), 0.05, momentum=0.9))


@add()
def against_an_adversary() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        with torch.enable_grad():
            near = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(functional.cross_entropy(model(near), y), near)
        return functional.cross_entropy(model((x + 0.2 * slope.sign()).detach()), y)

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    return Training(net, tasks.loader(*tasks.digits()), loss, optim.Adam(net.parameters(), 2e-3))


@add("torch-geometric")
def links_of_one_graph() -> Training:
    from torch_geometric.data import Data  # noqa: PLC0415 - may be missing
    from torch_geometric.nn import GCNConv  # noqa: PLC0415 - as above
    from torch_geometric.utils import negative_sampling  # noqa: PLC0415 - as above

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = GCNConv(24, 32)
            self.conv2 = GCNConv(32, 16)

        def forward(self, data: Any) -> Tensor:
            return self.conv2(self.conv1(data.x, data.edge_index).relu(), data.edge_index)

    kind = torch.randint(6, (240,))
    chance = torch.where(kind[:, None] == kind[None], 0.15, 0.004)
    edges = (torch.rand(240, 240) < chance).triu(1).nonzero().T
    graph = Data(x=torch.randn(6, 24)[kind] + torch.randn(240, 24), edge_index=torch.cat([edges, edges.flip(0)], 1))

    def loss(model: nn.Module, data: Any) -> Tensor:
        z = model(data)
        absent = negative_sampling(data.edge_index, 240, data.edge_index.shape[1])
        pairs = torch.cat([data.edge_index, absent], 1)
        told = (torch.arange(pairs.shape[1]) < data.edge_index.shape[1]).float()
        return functional.binary_cross_entropy_with_logits((z[pairs[0]] * z[pairs[1]]).sum(1), told)

    net = Encoder()
    return Training(net, [graph], loss, optim.Adam(net.parameters(), 1e-2))


class ClippedDescent(optim.SGD):
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.25)
        return super().step(closure)


class WordModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(32, 48)
        self.rnn = nn.LSTM(48, 48, batch_first=True)
        self.decoder = nn.Linear(48, 32)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(ids))[0])


@add()
def words_at_a_rate_of_five_clipped() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    net = WordModel()
    return Training(net, tasks.loader(tasks.text(), batch=32), loss, ClippedDescent(net.parameters(), 5.0))


class Spectral(nn.Module):
    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.complex64) / width)
        self.local = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.einsum("nim,iom->nom", torch.fft.rfft(x)[..., : self.modes], self.weight)
        return functional.gelu(torch.fft.irfft(low, n=x.shape[-1]) + self.local(x))


@add()
def fourier_operator_of_complex_weights() -> Training:
    """A periodic profile, and the same after some time of diffusion and drift."""
    waves = torch.fft.rfft(torch.randn(768, 1, 48))
    number = torch.arange(25)
    waves = waves / (1 + number.square() / 16)
    later = waves * torch.exp(-0.01 * number.square() - 0.5j * number)
    start, end = (torch.fft.irfft(each, n=48) for each in (waves, later))
    net = nn.Sequential(nn.Conv1d(1, 16, 1), Spectral(16, 12), Spectral(16, 12), nn.Conv1d(16, 1, 1))

    def relative(model: nn.Module, batch: Any) -> Tensor:
        return ((model(batch[0]) - batch[1]).flatten(1).norm(dim=1) / batch[1].flatten(1).norm(dim=1)).mean()

    return Training(net, tasks.loader(start, end, batch=32), relative, optim.Adam(net.parameters(), 3e-3))
