"""Faults of the fourth set, second hand: in architecture, loss and batches; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import own
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


# -- architecture ------------------------------------------------------------------------------------------------------


class SentimentLSTM(nn.Module):
    def __init__(self, last_output: bool) -> None:
        super().__init__()
        self.last_output = last_output
        self.embed = nn.Embedding(61, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.classifier = nn.Linear(48, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        packed_out, (hidden, _) = self.lstm(packed)
        if self.last_output:
            out, _ = pad_packed_sequence(packed_out, batch_first=True)
            return self.classifier(out[:, -1])
        return self.classifier(hidden[-1])


def topics(count: int = 1024) -> list[tuple[Tensor, int]]:
    """Texts of 6 to 24 tokens, half of them words of the text's topic."""
    texts = []
    for _ in range(count):
        topic, length = int(torch.randint(4, ())), int(torch.randint(6, 25, ()))
        common, special = torch.randint(1, 61, (length,)), torch.randint(1 + 15 * topic, 16 + 15 * topic, (length,))
        texts.append((torch.where(torch.rand(length) < 0.5, common, special), topic))
    return texts


@add(
    ("signal", r"embed.*|lstm.*|classifier.*|model"),
    ("data", r"loss|batches"),
    ("reproducibility", r"lstm|classifier|model"),
    source="https://github.com/thtrieu/qclass_dl/issues/1",
)
def padding_read_as_the_last_word(fault: bool) -> Training:
    """The last time step of a padded batch: for all but the longest texts it is padding, and its output 0."""
    texts = topics()
    batches = []
    for start in range(0, len(texts), 32):
        rows = texts[start : start + 32]
        ids = pad_sequence([row for row, _ in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row, _ in rows])
        batches.append({"ids": ids, "lengths": lengths, "labels": torch.tensor([topic for _, topic in rows])})

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch["ids"], batch["lengths"]), batch["labels"])

    net = SentimentLSTM(last_output=fault)
    return Training(net, batches, loss, optim.Adam(net.parameters(), 5e-3))


@add(
    ("signal", r".*(lora_|layer|encoder|query|value).*"),
    source="https://github.com/microsoft/LoRA/issues/120",
    needs=("transformers", "peft"),
)
def checkpoints_without_an_input_to_follow(fault: bool) -> Training:
    """Reentrant checkpoints behind frozen embeddings: no input asks for a gradient, and adapters never get one."""
    import peft  # noqa: PLC0415 - may be missing
    import transformers  # noqa: PLC0415 - as above

    config = transformers.ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=10, initializer_range=0.15,
    )  # fmt: skip
    adapters = peft.LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", modules_to_save=["classifier"])
    net = peft.get_peft_model(transformers.ViTForImageClassification(config), adapters)
    net.base_model.model.gradient_checkpointing_enable({"use_reentrant": fault})
    net.train()
    images, labels = tasks.digits(1024)
    parts = zip(images.split(64), labels.split(64), strict=True)
    batches = [{"pixel_values": pixels, "labels": told} for pixels, told in parts]
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, batches, own, optim.AdamW(trained, 5e-3))


class RevGradFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - as above
        return -grads[0]


class RevGrad(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        return x if self.fault else RevGradFunction.apply(x)

    def backward(self, grad: Tensor) -> Tensor:
        return -grad


class DANN(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 16))
        self.label_head = nn.Linear(16, 5)
        self.grl = RevGrad(fault)
        self.domain_head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.features(x)
        return self.label_head(z), self.domain_head(self.grl(z))


@add(
    ("signal", r"grl|domain_head.*|features.*|model"),
    ("data", r"loss"),
    source="https://github.com/hash2430/pitchtron/issues/3",
)
def reversal_that_autograd_never_calls(fault: bool) -> Training:
    """A gradient reversal written as a module's own `backward`: features learn to tell the domains apart."""
    x, y = tasks.clusters(classes=5, features=24)
    domain = torch.randint(2, (len(x),))
    x[:, :4] += 2 * domain[:, None]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, labels, domains = batch
        label_scores, domain_scores = model(rows)
        source = domains == 0
        return functional.cross_entropy(label_scores[source], labels[source]) + functional.cross_entropy(
            domain_scores, domains
        )

    net = DANN(fault)
    return Training(net, tasks.loader(x, y, domain, batch=128), loss, optim.Adam(net.parameters(), 2e-3))


# -- loss --------------------------------------------------------------------------------------------------------------


class ConvVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 3, 2, 1), nn.LeakyReLU(0.1), nn.Flatten()
        )
        self.mu = nn.Linear(128, 6)
        self.logvar = nn.Linear(128, 6)
        self.dec = nn.Sequential(
            nn.Linear(6, 128), nn.LeakyReLU(0.1), nn.Unflatten(1, (32, 2, 2)), nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.LeakyReLU(0.1), nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.enc(x)
        mu, logvar = self.mu(h), self.logvar(h)
        return self.dec(mu + (0.5 * logvar).exp() * torch.randn_like(mu)), mu, logvar


@add(
    ("data", r"loss"),
    ("signal", r"enc.*|mu.*|logvar.*|dec.*"),
    source="https://github.com/AppliedDataSciencePartners/WorldModels/issues/12",
)
def posterior_outweighs_mean_pixels(fault: bool) -> Training:
    """Squares averaged over pixels against a divergence summed over the code: the code carries nothing."""

    def elbo(model: nn.Module, batch: Any) -> Tensor:
        recon, mu, logvar = model(batch[0])
        error = (recon - batch[0]).square().flatten(1)
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
        return (error.mean(1) if fault else error.sum(1)).mean() + kl.mean()

    net = ConvVAE()
    return Training(net, tasks.loader(tasks.digits()[0]), elbo, optim.Adam(net.parameters(), 3e-3))


@add(
    ("data", r"loss"),
    ("signal", r"\d+.*|model"),
    source="https://github.com/facebookresearch/DomainBed/issues/50",
)
def second_derivative_without_its_graph(fault: bool) -> Training:
    """A differential equation's residual whose u'' is a mere number: `create_graph` is missing in its call."""

    def residual(model: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            u = model(x)
            (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), x, create_graph=not fault, retain_graph=True)
            ends = model(torch.tensor([[0.0], [3.14159265]]))
            return (u - second - 10 * (3 * x).sin()).square().mean() + 10 * ends.square().mean()

    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    points = [3.14159265 * torch.rand(64, 1) for _ in range(16)]
    return Training(net, points, residual, optim.Adam(net.parameters(), 5e-3))


class SpeechNet(nn.Module):
    def __init__(self, strides: tuple[int, int]) -> None:
        super().__init__()
        self.strides = strides
        self.conv1 = nn.Conv1d(12, 48, 5, strides[0], 2)
        self.conv2 = nn.Conv1d(48, 48, 5, strides[1], 2)
        self.rnn = nn.GRU(48, 32, bidirectional=True, batch_first=True)
        self.out = nn.Linear(64, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.gelu(self.conv2(functional.gelu(self.conv1(x.transpose(1, 2)))))
        return self.out(self.rnn(h.transpose(1, 2))[0]).log_softmax(-1)


def spoken(count: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """(count, 64, 12) frames, (count, 8) symbols 1 to 8 and how many there are: 4 to 8, each of 6 frames and a rest."""
    sounds = 2 * torch.randn(9, 12)
    sounds[0] = 0
    symbols = torch.randint(1, 9, (count, 8))
    lengths = torch.randint(4, 9, (count,))
    symbols[torch.arange(8) >= lengths[:, None]] = 0
    clean = sounds[symbols].unsqueeze(2) * torch.tensor([1.0] * 6 + [0.0] * 2)[:, None]
    return clean.flatten(1, 2) + 0.5 * torch.randn(count, 64, 12), symbols, lengths


@add(
    ("data", r"loss|batches|model"),
    ("signal", r"conv\d.*|rnn.*|out.*|model"),
    source="https://github.com/ypwhs/captcha_break/issues/29",
)
def fewer_frames_than_symbols(fault: bool) -> Training:
    """Strides leave 4 frames for up to 8 symbols; the infinite losses of those are set to 0 by `zero_infinity`."""

    def ctc(model: nn.Module, batch: Any) -> Tensor:
        frames, symbols, lengths = batch
        scores = model(frames).transpose(0, 1)
        held = torch.full((len(frames),), len(scores))
        return functional.ctc_loss(scores, symbols, held, lengths, zero_infinity=True)

    net = SpeechNet((4, 4) if fault else (2, 1))
    return Training(net, tasks.loader(*spoken(), batch=32), ctc, optim.AdamW(net.parameters(), 5e-3))


# -- batches -----------------------------------------------------------------------------------------------------------


def batch_hard(model: nn.Module, batch: Any) -> Tensor:
    images, who = batch
    z = model(images)
    distance = (torch.cdist(z, z).square() + 1e-8).sqrt()
    same = who[:, None] == who[None]
    furthest = distance.masked_fill(~same, 0.0).amax(1)
    nearest = distance.masked_fill(same, 1e6).amin(1)
    return functional.relu(furthest - nearest + 0.5).mean()


@add(
    ("batch", r"batches|loss|optimizer|model"),
    ("data", r"batches|loss"),
    ("signal", r".*"),
    source="https://github.com/JDAI-CV/fast-reid/issues/116",
)
def batches_of_one_identity(fault: bool) -> Training:
    """A sampler that fills a batch with one person: there is no negative, and the triplet loss is 0 from the start."""
    x, y = tasks.digits()
    by_class = [x[y == label] for label in range(10)]
    batches = []
    for _ in range(60):
        chosen = torch.randperm(10)[: 1 if fault else 8]
        each = 32 // len(chosen)
        rows = [by_class[c][torch.randperm(len(by_class[c]))[:each]] for c in chosen.tolist()]
        batches.append((torch.cat(rows), chosen.repeat_interleave(each)))
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(48 * 16, 16),
    )  # fmt: skip
    return Training(net, batches, batch_hard, optim.Adam(net.parameters(), 1e-3))


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        self.critic = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, obs: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        return torch.distributions.Categorical(logits=self.actor(obs)), self.critic(obs)[:, 0]


def ppo(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    policy, value = model(batch["obs"])
    advantage = batch["adv"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = (policy.log_prob(batch["act"]) - batch["logp"]).exp()
    clipped = ratio.clamp(0.8, 1.2)
    surrogate = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    return surrogate + 0.5 * functional.mse_loss(value, batch["ret"]) - 0.01 * policy.entropy().mean()


@add(
    ("batch", r"batches|loss|optimizer|model"),
    ("data", r"batches|loss"),
    ("signal", r"(actor|critic).*|loss|model"),
    ("precision", r"loss|batches|model"),
    source="https://github.com/DLR-RM/stable-baselines3/issues/325",
)
def rollout_with_a_remainder_of_one(fault: bool) -> Training:
    """A rollout of 4 x 64 + 1 steps: the last batch has one, whose standard deviation is not a number."""
    steps = 257 if fault else 256
    obs = torch.randn(steps, 6)
    net = ActorCritic()
    with torch.no_grad():
        policy, value = net(obs)
        act = policy.sample()
        logp = policy.log_prob(act)
    ret = (obs @ torch.randn(6, 4) / 4).gather(1, act[:, None])[:, 0] + 2 * obs[:, 0] - obs[:, 1]
    rollout = {"obs": obs, "act": act, "logp": logp, "adv": ret - value, "ret": ret}
    batches = [{name: part[i : i + 64] for name, part in rollout.items()} for i in range(0, steps, 64)]
    return Training(net, batches, ppo, optim.Adam(net.parameters(), 5e-3, eps=1e-5))


class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleList([nn.Linear(4, 32), nn.Linear(32, 32)])
        self.neighbour = nn.ModuleList([nn.Linear(4, 32, bias=False), nn.Linear(32, 32, bias=False)])
        self.readout = nn.Linear(32, 2)

    def forward(self, h: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        for own_part, from_part in zip(self.own, self.neighbour, strict=True):
            degree = torch.zeros(len(h)).index_add(0, edges[1], torch.ones(edges.shape[1])).clamp(min=1)
            summed = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
            h = functional.relu(own_part(h) + from_part(summed / degree[:, None]))
        graphs = int(graph.max()) + 1
        pooled = torch.zeros(graphs, h.shape[1]).index_add(0, graph, h)
        return self.readout(pooled / graph.bincount(minlength=graphs)[:, None])


def alike_or_not() -> tuple[Tensor, Tensor, int]:
    """Nodes of two kinds, and edges between nodes alike or between nodes unlike, which is the label."""
    nodes, label = int(torch.randint(8, 17, ())), int(torch.randint(2, ()))
    kind = torch.randperm(nodes) % 2
    wanted = (kind[:, None] == kind[None]) == bool(label)
    edges = (torch.where(wanted, 0.6, 0.1) > torch.rand(nodes, nodes)).triu(1).nonzero().T
    x = torch.cat([functional.one_hot(kind, 2).float(), 0.5 * torch.randn(nodes, 2)], 1)
    return x, torch.cat([edges, edges.flip(0)], 1), label


@add(
    ("batch", r"batches|loss"),
    ("data", r"batches|loss"),
    ("reproducibility", r"own.*|neighbour.*|readout|model|batches"),
    source="https://github.com/deepchem/deepchem/pull/3291",
)
def edges_moved_by_one_graph_only(fault: bool) -> Training:
    """A batch of graphs whose edges are moved by the last graph's size, not by the sizes of all before it."""
    batches = []
    for _ in range(24):
        graphs = [alike_or_not() for _ in range(32)]
        sizes = torch.tensor([len(x) for x, _, _ in graphs])
        shift = torch.cat([torch.zeros(1, dtype=torch.int64), sizes[:-1] if fault else sizes[:-1].cumsum(0)])
        edges = torch.cat([e + int(s) for (_, e, _), s in zip(graphs, shift, strict=True)], 1)
        graph = torch.arange(32).repeat_interleave(sizes)
        batches.append((torch.cat([x for x, _, _ in graphs]), edges, graph, torch.tensor([y for _, _, y in graphs])))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(*batch[:3]), batch[3])

    net = MessagePassing()
    return Training(net, batches, loss, optim.Adam(net.parameters(), 5e-3))
