"""Sound trainings on which the checks are scored. No threshold was set on them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import next_token, reconstruction, square
from benchmarks.fault_zoo.nets import Language, Recurrent, Residual, convnet, he, mlp
from benchmarks.fault_zoo.oracle import train
from benchmarks.fault_zoo.tasks import clusters, curves, digits, loader, signals, text
from depthgauge import Training, models

SOUNDS = Sounds()


@SOUNDS.add()
def lenet() -> Training:
    """One of depthgauge's own models, on images of 28 x 28."""
    images, labels = digits(1024)
    images = functional.interpolate(images, (28, 28), mode="bilinear")
    model = models.build("lenet5", input_shape=(1, 28, 28), classes=10, seed=int(torch.randint(1000, ())))
    return Training(model, loader(images, labels, batch=32), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@SOUNDS.add()
def residual_with_layer_norm() -> Training:
    """Sixteen residual blocks, normalized first, and a rate that warms up."""

    def block() -> nn.Module:
        return Residual(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 48)), scale=0.25)

    model = nn.Sequential(nn.Linear(24, 48), *(block() for _ in range(16)), nn.LayerNorm(48), nn.Linear(48, 10))
    return Training(model, loader(*clusters(features=24)), optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3))


@SOUNDS.add()
def self_normalizing() -> Training:
    """SELU with LeCun's initialization and no normalization."""
    model = he(mlp(64, 64, 6, 10, act=nn.SELU), gain=1.0)
    return Training(model, loader(*digits()), optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))


@SOUNDS.add()
def group_norm_convolutions() -> Training:
    """Group normalization, dropout of channels, label smoothing."""
    parts = [nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Dropout2d(0.1)]
    parts += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*parts, nn.Linear(512, 10))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

    return Training(model, loader(*digits()), loss, torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05))


@SOUNDS.add()
def heteroscedastic_regression() -> Training:
    """Mean and variance of each value by their likelihood, whose loss may be below 0."""
    rows, values = curves(noise=0.2)
    model = mlp(8, 64, 2, 2, act=nn.SiLU)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        mean, log_variance = model(batch[0]).split(1, 1)
        return functional.gaussian_nll_loss(mean, batch[1], log_variance.clamp(-6, 6).exp())

    return Training(model, loader(rows, values), loss, torch.optim.Adam(model.parameters(), lr=2e-3))


@SOUNDS.add()
def robust_regression_with_clipping() -> Training:
    """Huber's loss, and gradients clipped by a hook of the optimizer."""
    model = mlp(8, 64, 3, 1, act=nn.GELU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 1.0) and None)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.smooth_l1_loss(model(batch[0]), batch[1])

    return Training(model, loader(*curves()), loss, optimizer)


class _Factored(nn.Module):
    """A table of 400 users and one of 300 things, of which a batch meets a few."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(400, 8)
        self.things = nn.Embedding(300, 8)
        nn.init.normal_(self.users.weight, std=0.3)
        nn.init.normal_(self.things.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.users(pairs[:, 0]) * self.things(pairs[:, 1])).sum(1)


@SOUNDS.add()
def recommender() -> Training:
    """Likes by two embeddings: nearly all rows get no gradient in a step."""
    pairs = torch.stack([torch.randint(400, (8192,)), torch.randint(300, (8192,))], 1)
    tastes, looks = torch.randn(400, 2), torch.randn(300, 2)
    likes = ((tastes[pairs[:, 0]] * looks[pairs[:, 1]]).sum(1) > 0).float()
    model = _Factored()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    batches = loader(pairs, likes, batch=512)
    return Training(model, batches, loss, torch.optim.Adam(model.parameters(), lr=3e-2))


@SOUNDS.add()
def long_short_term_memory() -> Training:
    """A two-layer LSTM with dropout between its layers, and batches as mappings."""
    waves, labels = signals()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 32, num_layers=2, dropout=0.1, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, waves: Tensor, labels: Tensor) -> dict[str, Tensor]:
            scores = self.head(self.rnn(waves)[0].mean(1))
            return {"scores": scores, "loss": functional.cross_entropy(scores, labels)}

    model = Net()
    pairs = zip(waves.split(64), labels.split(64), strict=True)
    batches = [{"waves": part, "labels": held} for part, held in pairs]
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=5e-3))


@SOUNDS.add()
def variational_autoencoder() -> Training:
    """Noise in the middle, and two losses of which one is summed over the code, as it is written."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.ModuleDict)
        mean, log_variance = model["encoder"](batch[0]).chunk(2, 1)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (model["decoder"](code) - batch[0].flatten(1)).square().sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (error + divergence).mean() / 64

    return Training(model, loader(digits()[0]), loss, torch.optim.Adam(model.parameters(), lr=2e-3))


@SOUNDS.add()
def denoising_autoencoder_in_double() -> Training:
    """Everything in float64."""
    rows = digits()[0].double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 64), nn.Unflatten(1, (1, 8, 8)))
    model.double()
    batches = loader(rows)
    return Training(model, batches, reconstruction, torch.optim.Adam(model.parameters(), lr=3e-3))


@SOUNDS.add()
def supervised_contrastive() -> Training:
    """Two towers for two kinds of views, a learned temperature."""
    rows, labels = clusters(features=20, classes=40)
    other = torch.randn(40, 12)[labels] + 0.3 * torch.randn(len(labels), 12)

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = mlp(20, 48, 2, 16)
            self.right = mlp(12, 48, 2, 16)
            self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            sides = functional.normalize(self.left(left), dim=1), functional.normalize(self.right(right), dim=1)
            return self.scale.exp() * sides[0] @ sides[1].T

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(*batch)
        own = torch.arange(len(scores))
        return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2

    model = Towers()
    return Training(model, loader(rows, other, batch=32), loss, torch.optim.AdamW(model.parameters(), lr=2e-3))


@SOUNDS.add()
def masked_language_model() -> Training:
    """Tokens hidden at random, -100 wherever none is; attention in both directions."""
    model = Language(vocabulary=13, causal=False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        hidden = torch.rand(batch[0].shape) < 0.2
        scores = model(batch[0].masked_fill(hidden, 12))
        return functional.cross_entropy(scores.flatten(0, 1), batch[0].masked_fill(~hidden, -100).flatten())

    return Training(
        model, loader(text(12, following=2), batch=32), loss, torch.optim.AdamW(model.parameters(), lr=3e-3)
    )


@SOUNDS.add()
def one_layer_six_times() -> Training:
    """One layer used six times over: its parameters are shared along the depth, as ALBERT's are."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry = nn.Linear(24, 48)
            self.block = Residual(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.ReLU()), scale=0.5)
            self.head = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.entry(x)
            for _ in range(6):
                x = self.block(x)
            return self.head(x)

    model = Shared()
    return Training(model, loader(*clusters(features=24)), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@SOUNDS.add()
def head_before_backbone() -> Training:
    """A trained backbone at a hundredth of the new head's rate."""
    images, labels = digits()
    net = convnet()
    train(Training(net, loader(images, labels % 2), optimizer=torch.optim.Adam(net.parameters(), lr=2e-3)), 80)
    net.zero_grad()
    net[-1] = nn.Linear(64, 10)
    groups = [{"params": net[:-1].parameters(), "lr": 1e-4}, {"params": net[-1].parameters(), "lr": 1e-2}]
    return Training(net, loader(images, labels), optimizer=torch.optim.AdamW(groups))


@SOUNDS.add()
def generator_half() -> Training:
    """A generator's turn in a game: the critic is trained and does not train now."""
    rows = torch.randn(2048, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.8]]) + torch.tensor([2.0, -1.0])
    critic = mlp(2, 32, 2, 1)

    def truth(model: nn.Module, batch: Any) -> Tensor:
        false = torch.randn(len(batch[0]), 2)
        return functional.softplus(-model(batch[0])).mean() + functional.softplus(model(false)).mean()

    train(Training(critic, loader(rows), truth, torch.optim.Adam(critic.parameters(), lr=3e-3)), 100)
    critic.zero_grad()
    model = nn.ModuleDict({"generator": mlp(4, 32, 2, 2), "critic": critic.requires_grad_(False)})

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.ModuleDict)
        return functional.softplus(-model["critic"](model["generator"](torch.randn(len(batch[0]), 4)))).mean()

    optimizer = torch.optim.Adam(model["generator"].parameters(), lr=1e-3, betas=(0.5, 0.999))
    return Training(model, loader(rows), loss, optimizer)


@SOUNDS.add()
def segmentation() -> Training:
    """Scores for every pixel: which are ink; rare classes weigh more."""
    images = digits(1024)[0]
    masks = (images.squeeze(1) > 0.5).long()
    noisy = images + 0.5 * torch.randn_like(images)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )  # fmt: skip

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([1.0, 2.0]))

    return Training(model, loader(noisy, masks, batch=32), loss, torch.optim.Adam(model.parameters(), lr=3e-3))


@SOUNDS.add()
def checkpointed_language_model() -> Training:
    """A block whose activations are computed again on the way back; weight-normalized head."""
    from torch.nn.utils.parametrizations import weight_norm  # noqa: PLC0415 - one training needs it
    from torch.utils.checkpoint import checkpoint  # noqa: PLC0415 - as above

    class Net(Language):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens) + self.places[: tokens.shape[1]]
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(self.norm(x))

    model = Net()
    weight_norm(model.head)
    return Training(model, loader(text(), batch=32), next_token, torch.optim.AdamW(model.parameters(), lr=3e-3))


@SOUNDS.add()
def imbalanced_and_noisy() -> Training:
    """Nine in ten examples of one class, a tenth of the labels wrong."""
    rows, labels = clusters(classes=3, features=16, count=4096, spread=0.7)
    kept = (labels == 0) | (torch.rand(4096) < 0.1)
    rows, labels = rows[kept], labels[kept]
    labels = torch.where(torch.rand(len(labels)) < 0.1, torch.randint(3, (len(labels),)), labels)
    model = mlp(16, 48, 2, 3)
    return Training(model, loader(rows, labels), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@SOUNDS.add()
def value_function() -> Training:
    """A critic of reinforcement learning: its targets are rewards and what it says itself, without a gradient."""
    states = torch.randn(2048, 6)
    following = 0.9 * states + 0.3 * torch.randn(2048, 6)
    rewards = states[:, :1].tanh()
    model = mlp(6, 48, 2, 1, act=nn.Tanh)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            target = batch[2] + 0.5 * model(batch[1])
        return functional.mse_loss(model(batch[0]), target)

    return Training(model, loader(states, following, rewards), loss, torch.optim.Adam(model.parameters(), lr=3e-3))


@SOUNDS.add()
def running_sums() -> Training:
    """A recurrent network with SGD and momentum; a target a step."""
    waves, _ = signals()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = Recurrent(outputs=1).rnn
            self.head = nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    model = Net()
    targets = waves.cumsum(1)[..., :1] / 4
    return Training(model, loader(waves, targets), square, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))
