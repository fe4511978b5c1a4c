"""Faults of the sixth set, in data, loss, rate and number format; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import own
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class Hourglass(nn.Module):
    def __init__(self, squash: bool) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
        self.joint = nn.Sequential(nn.Conv2d(9, 1, 3, padding=1), nn.Sigmoid() if squash else nn.Identity())

    def forward(self, image: Tensor) -> Tensor:
        h = self.down(image)
        h = self.up(h + self.middle(h))
        return self.joint(torch.cat([functional.relu(h), image], 1))


@add(
    ("data", r"loss|model|joint.*"),
    ("signal", r"joint.*|model"),
    source="https://github.com/Turoad/lanedet/issues/32",
)
def sigmoid_in_the_heatmap_and_in_its_loss(fault: bool) -> Training:
    """Joints as heatmaps that are 0 nearly everywhere: behind a sigmoid the loss with logits ends near 0.69."""
    place = 1 + 10 * torch.rand(768, 2)
    axis = torch.arange(12.0)
    square = (axis[None, :, None] - place[:, :1, None]) ** 2 + (axis[None, None] - place[:, 1:, None]) ** 2
    heat = (-square / 2).exp().unsqueeze(1)
    image = heat.sqrt() + 0.4 * torch.randn_like(heat)
    net = Hourglass(squash=fault)
    return Training(
        net, tasks.loader(image, heat, batch=32),
        lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1]), optim.Adam(net.parameters(), lr=5e-3),
    )  # fmt: skip


class Crf(nn.Module):
    """Scores of tags by a convolution, and of each tag after another by a table."""

    def __init__(self) -> None:
        super().__init__()
        self.emit = nn.Sequential(nn.Conv1d(6, 32, 3, padding=1), nn.Tanh(), nn.Conv1d(32, 5, 1))
        self.transitions = nn.Parameter(0.1 * torch.randn(5, 5))

    def forward(self, x: Tensor, tags: Tensor) -> Tensor:
        emitted = self.emit(x).mT
        score = emitted.gather(2, tags.unsqueeze(-1)).sum((1, 2))
        score = score + self.transitions[tags[:, :-1], tags[:, 1:]].sum(1)
        ways = emitted[:, 0]
        for step in emitted.unbind(1)[1:]:
            ways = (ways.unsqueeze(2) + self.transitions).logsumexp(1) + step
        return ways.logsumexp(1) - score


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer|loss"),
    source="In kind: a conditional random field's package whose reduction is a sum where none is asked for.",
)
def likelihood_of_a_field_summed(fault: bool) -> Training:
    """Tags by a conditional random field: its likelihood is summed over 64 sentences, for the rate of a mean."""
    tags = tasks.text(vocabulary=5, length=10, count=1024, following=2)
    x = torch.randn(5, 6)[tags].mT + 0.8 * torch.randn(1024, 6, 10)
    net = Crf()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        each = model(*batch)
        return each.sum() if fault else each.mean()

    return Training(net, tasks.loader(x, tags), loss, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


@add(
    ("data", r"loss|batches|labels?|model"),
    source="In kind: labels prepared as inputs[1:] for a model of a library that moves its labels itself.",
    needs=("transformers",),
)
def labels_moved_for_a_model_that_moves_them(fault: bool) -> Training:
    """GPT-NeoX by configuration: labels are the tokens moved by one, and the model moves them by one more."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    ids = tasks.text(vocabulary=40, length=21, count=960, following=2)
    pairs = [(rows[:, :-1], rows[:, 1:] if fault else rows[:, :-1]) for rows in ids.split(32)]
    batches = [{"input_ids": rows.contiguous(), "labels": labels.contiguous()} for rows, labels in pairs]
    net = transformers.GPTNeoXForCausalLM(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=5e-3))


class Basis(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.backcast = None if last else nn.Linear(48, 12)
        self.forecast = nn.Linear(48, 1)


class Stack(nn.Module):
    """Blocks that each explain a part of the past away, and add to the forecast."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Basis(last=i == 2) for i in range(3))

    def forward(self, past: Tensor) -> Tensor:
        ahead = past.new_zeros(len(past), 1)
        for block in self.blocks:
            h = block.body(past)
            ahead = ahead + block.forecast(h)
            if block.backcast is not None:
                past = past - block.backcast(h)
        return ahead


@add(
    ("data", r"batches|inputs?|loss|x"),
    source="https://github.com/alteryx/featuretools/issues/2227",
)
def window_includes_its_target(fault: bool) -> Training:
    """The next hour of a noisy load from twelve hours, the last of which is that hour itself."""
    hours = torch.arange(2200)
    noise, load = torch.randn(2200), [torch.zeros(())]
    for t in range(1, 2200):
        load.append(0.6 * load[-1] + 0.8 * noise[t])
    series = torch.stack(load) + (6.28 * hours / 24).sin()
    series = (series - series.mean()) / series.std()
    first = 1 if fault else 0
    past = torch.stack([series[i + first : i + first + 12] for i in range(2048)])
    ahead = series[12 : 12 + 2048].unsqueeze(1)
    net = Stack()
    return Training(
        net, tasks.loader(past, ahead), lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=2e-3),
    )  # fmt: skip


@add(
    ("data", r"batches|inputs?|x"),
    ("signal", r"\d+.*|model"),
    ("learning_rate", r"optimizer"),
    source="In kind: a sound file read as whole numbers of 16 bits, and not divided by 32,768.",
)
def sound_in_whole_numbers_of_16_bits(fault: bool) -> Training:
    """Which of four notes, from samples of -32,768 to 32,767 as a file holds them."""
    note = torch.randint(4, (1024,))
    time = torch.arange(256) / 256
    loud = 2000 + 14000 * torch.rand(1024, 1)
    wave = (6.28 * (9 + 4 * note)[:, None] * time + 6.28 * torch.rand(1024, 1)).sin()
    samples = (loud * (wave + 0.3 * torch.randn(1024, 256))).round().clamp(-32768, 32767).unsqueeze(1)
    net = nn.Sequential(
        nn.Conv1d(1, 24, 16, stride=4), nn.ReLU(), nn.Conv1d(24, 24, 8, stride=4), nn.ReLU(), nn.AdaptiveMaxPool1d(1),
        nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    rows = tasks.loader(samples if fault else samples / 8192, note, batch=32)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class Copier(nn.Module):
    """Dilated causal convolutions that tell what came six steps ago."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Embedding(10, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 32, 2, dilation=2**i) for i in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(1, 32) for _ in range(4))
        self.out = nn.Conv1d(32, 10, 1)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.inp(ids).mT
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = h + functional.silu(conv(functional.pad(norm(h), (conv.dilation[0], 0))))
        return self.out(h)


@add(("learning_rate", r"optimizer"), source="In kind: the rate of a tutorial's SGD kept for an adaptive optimizer.")
def nesterov_adam_thirty_times_too_fast(fault: bool) -> Training:
    """What came six steps ago, by dilated causal convolutions and NAdam at 30 times a rate at which it learns."""
    ids = torch.randint(10, (1024, 24))
    net = Copier()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0])[..., 6:], batch[0][:, :-6])

    rate = 5e-3 * (30 if fault else 1)
    return Training(net, tasks.loader(ids, batch=32), loss, optim.NAdam(net.parameters(), lr=rate))


class Typist(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(30, 24)
        self.gru = nn.GRU(24, 48, batch_first=True)
        self.next = nn.Linear(48, 30)

    def forward(self, ids: Tensor) -> Tensor:
        return self.next(self.gru(self.letters(ids))[0])


@add(("learning_rate", r"optimizer"), source="In kind: a rate for fine-tuning, taken over for weights drawn anew.")
def adamax_thirty_times_too_slow(fault: bool) -> Training:
    """Letters by a gated recurrence and Adamax, at a thirtieth of a rate at which it learns."""
    net = Typist()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    rows = tasks.loader(tasks.text(vocabulary=30, length=16, following=2), batch=32)
    return Training(net, rows, loss, optim.Adamax(net.parameters(), lr=1e-2 / (30 if fault else 1)))


class ChannelNorm(nn.Module):
    """Norm over the channels of each place; in float32 for `wide`."""

    def __init__(self, channels: int, wide: bool) -> None:
        super().__init__()
        self.wide = wide
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float() if self.wide else x
        away = h - h.mean(1, keepdim=True)
        h = (away / (away.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()).to(x.dtype)
        return self.weight[:, None, None].to(x.dtype) * h + self.bias[:, None, None].to(x.dtype)


class Radiograph(nn.Module):
    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 2, stride=2)
        nn.init.kaiming_normal_(self.stem.weight)
        self.norm = ChannelNorm(32, wide)
        self.mix = nn.Sequential(nn.Conv2d(32, 64, 1), nn.GELU(), nn.Conv2d(64, 32, 1))
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stem(x).half()).float()
        return self.head((h + self.mix(h)).flatten(1))


@add(
    ("precision", r".*"),
    ("signal", r"stem.*|norm.*|model|mix.*|head.*"),
    ("data", r"loss|batches|inputs?"),
    source="https://github.com/facebookresearch/ConvNeXt/issues/80",
)
def squares_of_a_channel_norm_in_float16(fault: bool) -> Training:
    """Images of 12 bits, normalized behind a stem: squares of what is beyond 256 are inf in float16, and all is 0."""
    images, labels = tasks.pixels()
    net = Radiograph(wide=not fault)
    return Training(net, tasks.loader(images * 16, labels), None, optim.Adam(net.parameters(), lr=2e-3))


class Prototypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.centres = nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.body(x)) @ functional.normalize(self.centres).T / 0.03


@add(
    ("precision", r".*"),
    ("signal", r"body.*|centres|model"),
    ("data", r"loss"),
    source="In kind: log(p + 1e-8) of probabilities in float16, where 1e-8 is 0 and small probabilities are, too.",
)
def entropy_guarded_by_what_float16_lacks(fault: bool) -> Training:
    """Entropy of probabilities in float16 beside a cross-entropy: 1e-8 is 0 there, and 0 times log 0 no number."""
    net = Prototypes()
    eps = 1e-8 if fault else 1e-4

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0])
        p = scores.softmax(1).half()
        entropy = -(p * (p + eps).log()).sum(1).float().mean()
        return functional.cross_entropy(scores, batch[1], label_smoothing=0.1) + 0.1 * entropy

    return Training(net, tasks.loader(*tasks.clusters()), loss, optim.Adam(net.parameters(), lr=2e-3))


class Rescaled(nn.Module):
    """A frozen network whose inputs and hidden units are multiplied by learnt vectors that start at 1."""

    def __init__(self, body: nn.Sequential, kept: torch.dtype) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)
        sizes = [m.in_features for m in body if isinstance(m, nn.Linear)]
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(size)) for size in sizes)
        self.to(kept)

    def forward(self, x: Tensor) -> Tensor:
        h, scales = x.flatten(1).to(self.scales[0].dtype), iter(self.scales)
        for m in self.body:
            h = m(h * next(scales)) if isinstance(m, nn.Linear) else m(h)
        return h.float()


@add(
    ("precision", r".*"),
    ("learning_rate", r"optimizer|scales.*"),
    source="In kind: a model loaded in bfloat16 for its adapters, whose own few weights are in bfloat16, too.",
)
def vectors_of_ones_in_bfloat16(fault: bool) -> Training:
    """Vectors of ones that rescale a frozen network, in bfloat16: steps of 1.5e-3 round to the 1 that was there."""
    x, y = tasks.digits()
    body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    before = optim.Adam(body.parameters(), lr=3e-3)
    for _ in range(5):
        for rows, labels in zip(x.flatten(1).split(128), y.split(128), strict=True):
            before.zero_grad()
            functional.cross_entropy(body(rows), labels).backward()  # type: ignore[no-untyped-call] # torch's own
            before.step()
    worn = x * (2.5 * torch.rand(8, 8)) + 0.2 * torch.randn(8, 8)
    net = Rescaled(body, torch.bfloat16 if fault else torch.float32)
    return Training(net, tasks.loader(worn, y), None, optim.Adam(net.scales.parameters(), lr=1.5e-3))
