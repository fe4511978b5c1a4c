"""Faults of the eighth set, in number formats, steps, decay and schedules; written without a look at the checks."""

# ruff: noqa: D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import next_token
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add

Closure = Callable[[], float] | None


class PixelAttention(nn.Module):
    """Attention among pixels of a map of features, added by a share that starts at 0; scores are not divided."""

    def __init__(self, wide: int, half: bool) -> None:
        super().__init__()
        self.half_product = half
        self.query, self.key, self.value = nn.Conv2d(wide, 16, 1), nn.Conv2d(wide, 16, 1), nn.Conv2d(wide, wide, 1)
        self.share = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).flatten(2) for part in (self.query, self.key, self.value))
        scores = (q.mT.half() @ k.half()).float() if self.half_product else q.mT @ k
        return x + self.share * (v @ scores.softmax(-1).mT).view_as(x)


@add(
    ("precision", r".*"),
    ("signal", r"2.*|attention.*|model|loss"),
    ("data", r"loss|model"),
    source="https://github.com/pytorch/pytorch/issues/40497",
)
def products_of_attention_beyond_float16(fault: bool) -> Training:
    """Pixels of 0 to 255 less their mean, and attention among what convolutions say: products in float16 are inf."""
    images, labels = tasks.pixels()
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.ReLU(), PixelAttention(24, half=fault), nn.GroupNorm(4, 24),
        nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    nets.he(net)
    rows = tasks.loader(images - images.mean(), labels, batch=32)
    return Training(net, rows, None, optim.Adam(net.parameters(), lr=3e-3))


class Reviews(nn.Module):
    """Two opinions from what an LSTM says of all words, as probabilities in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(60, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 24, batch_first=True)
        self.opinion = nn.Linear(24, 2)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.lstm(self.word(ids))[0] * (ids != 0).unsqueeze(-1)
        return self.opinion(states.sum(1)).half().softmax(-1)


@add(
    ("precision", r".*"),
    ("data", r"loss|model|opinion.*"),
    ("signal", r"opinion.*|model|loss"),
    source="https://github.com/lisa-lab/DeepLearningTutorials/pull/86",
)
def logarithm_guarded_by_what_half_rounds_to_nothing(fault: bool) -> Training:
    """Reviews with some wrong opinions: `log(p + 1e-8)` of half precision is log(p), and p of a sure answer is 0."""
    good = torch.randint(2, (1024,))
    lean = torch.where(torch.rand(1024, 30) < 0.8, good[:, None], torch.randint(2, (1024, 30)))
    ids = 1 + 29 * lean + torch.randint(29, (1024, 30))
    ids = ids.masked_fill(torch.arange(30) >= torch.randint(10, 31, (1024, 1)), 0)
    told = torch.where(torch.rand(1024) < 0.01, 1 - good, good)
    net = Reviews()
    off = 1e-8 if fault else 1e-6

    def loss(model: nn.Module, batch: Any) -> Tensor:
        right = model(batch[0])[torch.arange(len(batch[1])), batch[1]]
        return -(right + off).float().log().mean()

    return Training(net, tasks.loader(ids, told, batch=16), loss, optim.Adam(net.parameters(), lr=3e-2))


class SingLoRA(nn.Module):
    """A layer that stays, and one square factor whose product with itself is faded in over 1000 passes."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.factor = nn.Parameter(torch.empty(base.out_features, rank))
        nn.init.kaiming_uniform_(self.factor, a=5**0.5)
        self.register_buffer("passed", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passed = self.passed + 1
        grown = (self.passed / 1000).clamp(max=1).to(self.factor.dtype)
        weight = self.base.weight + 4 * grown * (self.factor @ self.factor.T)
        return functional.linear(x, weight, self.base.bias)


@add(
    ("precision", r".*"),
    ("learning_rate", r"optimizer|.*factor"),
    ("signal", r".*factor|model|optimizer"),
    source="https://github.com/kyegomez/SingLoRA/issues/6",
)
def adapters_faded_in_over_bfloat16_weights(fault: bool) -> Training:
    """Layers of another task adapted by squares of a factor that fade in: in bfloat16 sums and steps round away."""
    x, kind = tasks.clusters(classes=8)
    net = nn.Sequential(*(each for _ in range(2) for each in (nn.Linear(32, 32), nn.ReLU())), nn.Linear(32, 8))
    before = optim.Adam(net.parameters(), lr=1e-2)
    for rows, labels in zip(x.split(64), kind.split(64), strict=True):
        before.zero_grad()
        functional.cross_entropy(net(rows), labels).backward()
        before.step()
    net[4].requires_grad_(False)
    for place in (0, 2):
        net[place] = SingLoRA(net[place], rank=8)
    if fault:
        net.bfloat16()
    moved = x.roll(3, 1).to(torch.bfloat16 if fault else torch.float32)
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(
        net, tasks.loader(moved, kind), lambda m, b: functional.cross_entropy(m(b[0]).float(), b[1]),
        optim.AdamW(trained, lr=3e-4),
    )  # fmt: skip


class Scaled(optim.SGD):
    """Noise on gradients and a limit on their length, and what the loss was multiplied by taken out."""

    scale, unscaled_first = 2.0**12, True

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.unscaled_first:
            self.unscale(params)
        for p in params:
            p.grad.add_(torch.randn_like(p.grad), alpha=1e-3)
        nn.utils.clip_grad_norm_(params, 1.0)
        if not self.unscaled_first:
            self.unscale(params)
        return super().step(closure)

    def unscale(self, params: list[nn.Parameter]) -> None:
        for p in params:
            p.grad.div_(self.scale)


@add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    source="https://github.com/rwth-i6/returnn/pull/1595",
)
def noise_and_clipping_before_the_scale_is_out(fault: bool) -> Training:
    """Frames of sounds by an LSTM in two directions: gradients get noise and a limit while they are 4096 as large."""
    sound = torch.randint(6, (1024, 5)).repeat_interleave(3, 1)
    look = torch.randn(6, 10)
    frames = look[sound] + 0.7 * torch.randn(1024, 15, 10)

    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(10, 24, batch_first=True, bidirectional=True)
            self.output = nn.Linear(48, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.lstm(x)[0])

    net = Hybrid()
    steps = Scaled(net.parameters(), lr=0.2, momentum=0.9)
    steps.unscaled_first = not fault

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return Scaled.scale * functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    return Training(net, tasks.loader(frames, sound, batch=32), loss, steps)


@add(
    ("learning_rate", r"optimizer|loss"),
    ("batch", r"loss|batches|optimizer"),
    ("data", r"loss"),
    source="https://github.com/fredzzhang/atlas/pull/26",
)
def eight_accumulated_losses_not_normalised(fault: bool) -> Training:
    """Digits by LeNet, eight small batches a step: their losses add up and are not divided, at the rate of one."""
    images, labels = tasks.digits()
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 10),
    )  # fmt: skip
    batches = [(images[i : i + 64], labels[i : i + 64]) for i in range(0, 1792, 64)]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        parts = [functional.cross_entropy(model(x), y) for x, y in zip(*(t.split(8) for t in batch), strict=True)]
        return torch.stack(parts).sum() / (1 if fault else len(parts))

    return Training(net, batches, loss, optim.SGD(net.parameters(), lr=0.1, momentum=0.9))


class Codes(nn.Module):
    """What follows in a patient's record."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Embedding(48, 32)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 48)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.code(ids)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        return self.head(self.norm(h))


@add(
    ("learning_rate", r".*norm.*|.*bias|blocks.*|optimizer|model"),
    ("signal", r".*norm.*|model"),
    ("data", r"optimizer|.*norm.*"),
    source="https://github.com/mmcdermott/MEDS_EIC_AR/issues/30",
)
def records_whose_norms_and_biases_decay(fault: bool) -> Training:
    """What follows in a record: a strong decay meant for matrices is on gains and biases, too, which shrink away."""
    net = Codes()
    flat = [p for p in net.parameters() if p.ndim < 2]
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 1.0},
        {"params": flat, "weight_decay": 1.0 if fault else 0.0},
    ]
    rows = tasks.loader(tasks.text(vocabulary=48, length=14, count=1024, following=2), batch=32)
    return Training(net, rows, next_token, optim.AdamW(groups, lr=3e-3))


class NeverZeroed(optim.Adam):
    """What a loop without `zero_grad` makes of Adam."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave gradients as they are."""


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"optimizer|loss"),
    ("signal", r"optimizer|model|classifier.*"),
    ("reproducibility", r"optimizer|loss"),
    source="https://github.com/udacity/deep-learning-v2-pytorch/pull/160",
)
def classifier_of_a_frozen_net_never_zeroed(fault: bool) -> Training:
    """A new classifier on features that stay: the loop has no `zero_grad`, and steps go by all gradients so far."""
    images, labels = tasks.digits()
    features = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3, 2), nn.ReLU(), nn.Flatten())
    whole = nn.Sequential(features, nn.Linear(128, 2))
    before = optim.Adam(whole.parameters(), lr=3e-3)
    for rows, digits in zip(images[:768].split(64), labels[:768].split(64), strict=True):
        before.zero_grad()
        functional.cross_entropy(whole(rows), digits % 2).backward()
        before.step()
    features.requires_grad_(False)
    net = nn.Sequential()
    net.add_module("features", features)
    net.add_module(
        "classifier", nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10), nn.LogSoftmax(1))
    )
    kind = NeverZeroed if fault else optim.Adam
    return Training(
        net, tasks.loader(images, labels, batch=64), lambda m, b: functional.nll_loss(m(b[0]), b[1]),
        kind(net.classifier.parameters(), lr=3e-3),
    )  # fmt: skip


class SteppedDown(optim.SGD):
    """Momentum whose rate is a tenth after every seven of what is counted: steps, or epochs of so many."""

    of, count = 1, 0

    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        said = super().step(closure)
        self.count += 1
        if self.count % (7 * self.of) == 0:
            for group in self.param_groups:
                group["lr"] *= 0.1
        return said


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"optimizer"),
    ("signal", r"optimizer"),
    source="https://github.com/pytorch/tutorials/pull/640",
)
def schedule_of_epochs_stepped_by_batches(fault: bool) -> Training:
    """A residual network fine-tuned: a rate that was to fall after seven epochs falls after every seven batches."""
    images, labels = tasks.digits()

    class Basic(nn.Module):
        def __init__(self, wide: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
            self.conv2, self.bn2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()

    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), Basic(24),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2),
    )  # fmt: skip
    before = optim.Adam(net.parameters(), lr=3e-3)
    for rows, digits in zip(images[:768].split(64), labels[:768].split(64), strict=True):
        before.zero_grad()
        functional.cross_entropy(net(rows), digits % 2).backward()
        before.step()
    net[6] = nn.Linear(24, 10)
    loader = tasks.loader(images, labels, batch=32)
    steps = SteppedDown(net.parameters(), lr=0.01, momentum=0.9)
    steps.of = 1 if fault else len(loader)
    return Training(net, loader, None, steps)
