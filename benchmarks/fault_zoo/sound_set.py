"""Sound trainings on which the checks' thresholds may be set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import next_token, reconstruction, square
from benchmarks.fault_zoo.nets import Language, Recurrent, Residual, convnet, he, mlp
from benchmarks.fault_zoo.tasks import clusters, curves, digits, loader, signals, text
from depthgauge import Training

SOUNDS = Sounds()


@SOUNDS.add()
def mlp_on_digits() -> Training:
    """Plain classification by a network with He's initialization."""
    model = he(mlp(64, 96, 3, 10))
    return Training(model, loader(*digits()), optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


@SOUNDS.add()
def convolutions_with_batch_norm() -> Training:
    """Batch normalization ties each example to its batch, as it does everywhere."""
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return Training(model, loader(*digits()), optimizer=optimizer)


@SOUNDS.add()
def regression() -> Training:
    """No classes: a smooth function of eight inputs."""
    model = mlp(8, 64, 2, 1, act=nn.Tanh)
    return Training(model, loader(*curves()), square, torch.optim.Adam(model.parameters(), lr=3e-3))


@SOUNDS.add()
def language_model() -> Training:
    """Next token; a decay for matrices and none for the rest, in two groups."""
    model = Language()
    matrices = [each for each in model.parameters() if each.dim() > 1]
    others = [each for each in model.parameters() if each.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return Training(model, loader(text(), batch=32), next_token, torch.optim.AdamW(groups, lr=3e-3))


@SOUNDS.add()
def tied_language_model() -> Training:
    """The head's weights are the embedding's."""
    model = Language()
    nn.init.normal_(model.embedding.weight, std=32**-0.5)
    model.head.weight = model.embedding.weight
    return Training(model, loader(text(), batch=32), next_token, torch.optim.AdamW(model.parameters(), lr=3e-3))


@SOUNDS.add()
def rare_words() -> Training:
    """An embedding of 1000 words, of which a batch holds a third; its gradient is sparse."""
    words = torch.randint(1000, (2048, 8))
    labels = (torch.randn(1000)[words].sum(1) > 0).long()
    bag = nn.EmbeddingBag(1000, 16, sparse=True, mode="sum")
    nn.init.normal_(bag.weight, std=0.1)
    model = nn.Sequential(bag, nn.Linear(16, 2))
    return Training(model, loader(words, labels), optimizer=torch.optim.SGD(model.parameters(), lr=1.0))


@SOUNDS.add()
def recurrent() -> Training:
    """A GRU over waves."""
    model = Recurrent()
    return Training(model, loader(*signals()), optimizer=torch.optim.RMSprop(model.parameters(), lr=3e-3))


@SOUNDS.add()
def autoencoder() -> Training:
    """Digits through eight numbers."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 8))
    model = nn.Sequential(encoder, nn.Linear(8, 48), nn.GELU(), nn.Linear(48, 64), nn.Unflatten(1, (1, 8, 8)))
    batches = loader(digits()[0])
    return Training(model, batches, reconstruction, torch.optim.Adam(model.parameters(), lr=3e-3))


@SOUNDS.add()
def contrastive() -> Training:
    """Two noisy views of each example find each other among the batch's; at chance the loss is ln of the batch."""
    rows, _ = clusters(features=24)
    model = he(mlp(24, 64, 2, 16))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        views = [functional.normalize(model(batch[0] + 0.2 * torch.randn_like(batch[0])), dim=1) for _ in range(2)]
        scores = views[0] @ views[1].T / 0.1
        return functional.cross_entropy(scores, torch.arange(len(scores)))

    return Training(model, loader(rows), loss, torch.optim.Adam(model.parameters(), lr=1e-3))


class _Frozen(nn.Module):
    """A backbone that does not train, and a head that does."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = he(nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU())).requires_grad_(False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@SOUNDS.add()
def frozen_backbone() -> Training:
    """Only the head trains; the optimizer holds all parameters."""
    model = _Frozen()
    return Training(model, loader(*digits()), optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3))


class _Adapted(nn.Module):
    """A linear layer that is frozen, and a low-rank correction whose second factor begins at 0."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


@SOUNDS.add()
def low_rank_adapters() -> Training:
    """A network trained on other classes, whose layers get low-rank corrections."""
    rows, labels = clusters(features=32)
    base = trained(Training(he(mlp(32, 64, 2, 10)), loader(rows, labels)), steps=150)
    adapted = [_Adapted(part) if isinstance(part, nn.Linear) else part for part in base]
    model = nn.Sequential(*adapted)
    moved = torch.randperm(10)[labels]
    held = [each for each in model.parameters() if each.requires_grad]
    return Training(model, loader(rows, moved), optimizer=torch.optim.Adam(held, lr=3e-3))


@SOUNDS.add()
def fine_tuned() -> Training:
    """A trained network goes on at a tenth of its rate: its loss begins far below chance."""
    batches = loader(*digits())
    model = trained(Training(he(mlp(64, 64, 2, 10)), batches), steps=100)
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))


def trained(training: Training, steps: int) -> nn.Sequential:
    """The training's model after so many steps of Adam."""
    optimizer = torch.optim.Adam(training.model.parameters(), lr=2e-3)
    stream = training.stream()
    for _ in range(steps):
        optimizer.zero_grad()
        training.value(next(stream)).backward()
        optimizer.step()
    stream.close()
    optimizer.zero_grad()
    assert isinstance(training.model, nn.Sequential)
    return training.model


class _Experts(nn.Module):
    """A mixture of experts of which each example uses one, chosen by a router."""

    def __init__(self, experts: int = 6) -> None:
        super().__init__()
        self.entry = nn.Linear(24, 32)
        self.router = nn.Linear(32, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(experts)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x).relu()
        share, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().squeeze(1)
            if len(rows):  # an expert that no example chose is not called
                out = out.index_add(0, rows, share[rows, None] * expert(x[rows]))
        return self.head(x + out)


@SOUNDS.add()
def mixture_of_experts() -> Training:
    """Some batches leave an expert without a gradient."""
    model = _Experts()
    return Training(
        model, loader(*clusters(features=24), batch=32), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3)
    )


class _Graphs(nn.Module):
    """Two layers of messages along the edges of one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        mean = batch["adjacency"] / batch["adjacency"].sum(1, keepdim=True)
        return mean @ self.second((mean @ self.first(batch["nodes"])).relu())


@SOUNDS.add()
def graph_network() -> Training:
    """One graph whose nodes are classified, from few that are labelled: every step has the same batch."""
    labels = torch.randint(4, (400,))
    chance = torch.where(labels[:, None] == labels, 0.05, 0.005)
    adjacency = (torch.rand(400, 400) < chance).float()
    adjacency = ((adjacency + adjacency.T + torch.eye(400)) > 0).float()
    nodes = 0.7 * functional.one_hot(labels, 16).float() + torch.randn(400, 16)
    batch = {"nodes": nodes, "adjacency": adjacency, "labels": labels, "seen": torch.rand(400) < 0.5}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch)[batch["seen"]], batch["labels"][batch["seen"]])

    model = _Graphs()
    return Training(model, [batch], loss, torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4))


@SOUNDS.add()
def zero_branches() -> Training:
    """Residual branches whose last layer begins at 0: what lies below it gets its first gradient in the second step."""

    def block() -> nn.Module:
        last = nn.Linear(64, 48)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return Residual(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 64), nn.GELU(), last))

    model = nn.Sequential(nn.Linear(24, 48), *(block() for _ in range(6)), nn.LayerNorm(48), nn.Linear(48, 10))
    return Training(model, loader(*clusters(features=24)), optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3))


@SOUNDS.add()
def dropout_and_autocast() -> Training:
    """Dropout of 0.3, and a forward pass under autocast to bfloat16."""
    parts = [nn.Linear(32, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.3)]
    model = he(nn.Sequential(*parts, nn.Linear(128, 10)))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(batch[0])
        return functional.cross_entropy(scores.float(), batch[1])

    return Training(model, loader(*clusters()), loss, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True))


@SOUNDS.add()
def policy_gradient() -> Training:
    """A bandit's policy by REINFORCE with a baseline: its loss is no measure of progress, and its actions are drawn."""
    contexts, best = clusters(classes=4, features=12)
    model = mlp(12, 48, 2, 4)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        policy = torch.distributions.Categorical(logits=model(batch[0]))
        actions = policy.sample()
        rewards = (actions == batch[1]).float()
        return -(policy.log_prob(actions) * (rewards - rewards.mean())).mean()

    return Training(model, loader(contexts, best), loss, torch.optim.Adam(model.parameters(), lr=2e-3))
