"""Faults of the seventh set, in number formats, steps, modes and axes; written without a look at the checks."""

# ruff: noqa: D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
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


class Stations(nn.Module):
    """What each station measures, from the others as they are near."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half_scores = half
        self.value = nn.Sequential(nn.Linear(3, 32), nn.SiLU())
        self.reach = nn.Parameter(torch.tensor(120.0))
        self.out = nn.Linear(32, 1)

    def forward(self, place: Tensor, seen: Tensor) -> Tensor:
        at = place.half() if self.half_scores else place
        away = (at.unsqueeze(2) - at.unsqueeze(1)).square().sum(-1)
        own_place = torch.eye(place.shape[1], dtype=torch.bool)
        weight = (-away.float() / self.reach.square()).masked_fill(own_place, -torch.inf).softmax(-1)
        return self.out(weight @ self.value(seen))[..., 0]


@add(
    ("precision", r".*"),
    ("signal", r"value.*|out.*|reach|model"),
    ("data", r"loss|batches|model"),
    source="In kind: attention by distances of places in metres under half precision.",
)
def squared_metres_in_float16(fault: bool) -> Training:
    """Weather of stations from those near: squares of distances beyond 256 m are inf, and a lone station gets NaN."""
    place = 700 * torch.rand(768, 10, 2)
    wave = torch.stack([(place[..., 0] / 150).sin(), (place[..., 1] / 200).cos(), (place.sum(-1) / 250).sin()], -1)
    aim = wave.sum(-1)
    net = Stations(half=fault)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(batch[0], batch[1]), batch[2])

    return Training(net, tasks.loader(place, wave, aim, batch=32), loss, optim.Adam(net.parameters(), lr=1e-2))


class Crossed(nn.Module):
    """Fields of a table, each a vector, crossed in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Embedding(24, 32)
        self.weigh = nn.Parameter(torch.ones(32))
        self.each = nn.Embedding(24, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.field(ids)
        pairs = (x.sum(1).square() - x.square().sum(1)) / 2
        return ((pairs * self.weigh).sum(1) / 32 + self.each(ids).sum((1, 2))).float()


@add(
    ("precision", r".*"),
    ("learning_rate", r"optimizer|field.*|weigh|each.*"),
    source="In kind: `model.to(torch.bfloat16)` before the optimizer is made, for weights of the size of 1.",
)
def crossed_fields_in_bfloat16(fault: bool) -> Training:
    """Clicks by crossed fields in bfloat16: steps of 0.003 at vectors of the size of 1 mostly round to nothing."""
    ids = torch.stack([torch.randint(6, (3072,)) + 6 * i for i in range(4)], 1)
    taste = torch.randn(24, 2)
    worth = (taste[ids].sum(1).square() - taste[ids].square().sum(1)).sum(1)
    click = (worth > worth.median()).float()
    net = Crossed()
    if fault:
        net.to(torch.bfloat16)
    return Training(
        net, tasks.loader(ids, click, batch=128),
        lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


class UnitClipped(optim.SGD):
    """Each unit's gradient at most a tenth of its weights, and what the loss was multiplied by taken out."""

    scale, scaled_yet = 2.0**10, False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if not self.scaled_yet:
                p.grad.div_(self.scale)
            rows = p.flatten(1) if p.ndim > 1 else p.unsqueeze(1)
            slope = p.grad.flatten(1) if p.ndim > 1 else p.grad.unsqueeze(1)
            most = 0.1 * rows.norm(dim=1, keepdim=True).clamp(min=1e-2)
            slope.mul_((most / slope.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0))
            if self.scaled_yet:
                p.grad.div_(self.scale)
        return super().step(closure)


@add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    source="In kind: clipping unit by unit, before `scaler.unscale_` and not behind it.",
)
def units_clipped_before_the_scale_is_out(fault: bool) -> Training:
    """Waves by dilated convolutions: units are clipped while gradients hold a scale of 1024, and then divided by it."""
    x, kind = tasks.signals(classes=4, length=24)
    net = nn.Sequential()
    for i in range(3):
        net += nn.Sequential(
            nn.Conv1d(24 if i else 3, 24, 3, padding=2**i, dilation=2**i), nn.GroupNorm(4, 24), nn.ReLU()
        )
    net += nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 4))
    steps = UnitClipped(net.parameters(), lr=0.1, momentum=0.9)
    steps.scaled_yet = fault

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return UnitClipped.scale * functional.cross_entropy(model(batch[0]), batch[1])

    return Training(net, tasks.loader(x.mT, kind, batch=48), loss, steps)


@add(
    ("learning_rate", r"optimizer|loss"),
    ("batch", r"loss|batches|optimizer"),
    ("data", r"loss"),
    source="In kind: losses of micro-batches added in a loop, and the division forgotten as their number grew.",
)
def losses_of_ten_micro_batches_added(fault: bool) -> Training:
    """Notes by an Elman network: the losses of ten micro-batches are added and not divided, for the rate of one."""

    class Elman(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(4, 32, batch_first=True)
            self.note = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.note(self.rnn(x)[0].mean(1))

    x, note = tasks.signals(classes=4, length=10, features=4)
    batches = [(x[i : i + 80].split(8), note[i : i + 80].split(8)) for i in range(0, 1520, 80)]
    net = Elman()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        parts = [functional.cross_entropy(model(one), y) for one, y in zip(*batch, strict=True)]
        return torch.stack(parts).sum() / (1 if fault else len(parts))

    return Training(net, batches, loss, optim.SGD(net.parameters(), lr=0.2, momentum=0.9))


class Watched(nn.Module):
    """A network that looks at its own sharpness now and then."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.back = back
        self.body = nn.Sequential()
        for i in range(4):
            self.body += nn.Sequential(nn.Linear(40 if i else 20, 40), nn.BatchNorm1d(40), nn.ReLU())
        self.out = nn.Linear(40, 8)

    @torch.no_grad()
    def sureness(self, x: Tensor) -> Tensor:
        before = self.training
        self.eval()
        sure = self.out(self.body(x)).softmax(-1).amax(-1).mean()
        if self.back:
            self.train(before)
        return sure

    def forward(self, x: Tensor) -> Tensor:
        self.sure = self.sureness(x[:8])
        return self.out(self.body(x))


@add(
    ("data", r"body.*|model|loss"),
    ("signal", r"body.*|model"),
    source="In kind: a method that measures calls `self.eval()` and leaves it so, from the first step on.",
)
def a_look_at_itself_leaves_eval_on(fault: bool) -> Training:
    """Rows of large numbers behind batch norms: each forward pass measures in eval mode first, and stays in it."""
    x, kind = tasks.clusters(classes=8, features=20)
    net = Watched(back=not fault)
    rows = tasks.loader(30 * x + 100, kind)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class Pyramid(nn.Module):
    """A scene's pixels, told by what is near and by the image's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.join = nn.Sequential(nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 3, 1))

    def forward(self, image: Tensor) -> Tensor:
        h = self.near(image)
        return self.join(torch.cat([h, self.pooled(h).expand_as(h)], 1))


@add(
    ("batch", r"pooled.*|batches|model"),
    ("data", r"pooled.*|batches|model"),
    ("signal", r"pooled.*|model"),
    source="https://github.com/VainF/DeepLabV3Plus-Pytorch/issues/27",
)
def image_pooling_of_two_images(fault: bool) -> Training:
    """Pixels whose class hangs on the scene, two images a batch: a norm of two pooled numbers says -1 and 1."""
    scene = torch.randint(3, (1024,))
    image = torch.randn(1024, 2, 6, 6)
    image[:, 1] += 0.6 * (scene.float() - 1)[:, None, None]
    label = ((image[:, 0] > 0).long() + scene[:, None, None]) % 3
    net = Pyramid()
    rows = tasks.loader(image, label, batch=2 if fault else 32)
    return Training(net, rows, None, optim.Adam(net.parameters(), lr=3e-3))


@add(
    ("learning_rate", r".*"),
    ("signal", r"lstm.*|model"),
    ("data", r"optimizer|loss"),
    source="In kind: a decay of 5 percent written as 5.0 for an optimizer that multiplies it by the rate.",
)
def percent_of_decay_for_a_share(fault: bool) -> Training:
    """Waves by a bidirectional LSTM whose decay is 5.0 and not 0.05: a twentieth of all weights goes in each step."""

    class Heartbeat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(2, 24, batch_first=True, bidirectional=True)
            self.kind = nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.kind(self.lstm(x)[0].mean(1))

    net = Heartbeat()
    rows = tasks.loader(*tasks.signals(classes=5, length=16, features=2), batch=64)
    return Training(net, rows, None, optim.AdamW(net.parameters(), lr=1e-2, weight_decay=5.0 if fault else 0.05))


class Lookahead(optim.Optimizer):
    """Fast steps of another optimizer; every fifth, slow weights go half the way and are where it starts again."""

    def __init__(self, fast: optim.Optimizer, *, all_zeroed: bool) -> None:
        self.fast, self.all_zeroed, self.count = fast, all_zeroed, 0
        params = [p for group in fast.param_groups for p in group["params"]]
        self.slow = [p.detach().clone() for p in params]
        super().__init__(params, {"lr": fast.param_groups[0]["lr"]})

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.all_zeroed:
            self.fast.zero_grad(set_to_none)
        for slow in self.slow:
            slow.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        said = self.fast.step(closure)
        self.count += 1
        if self.count % 5 == 0:
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                p.copy_(slow.lerp_(p, 0.5))
        return said


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"optimizer|loss"),
    ("signal", r"optimizer|model|\d+.*"),
    ("reproducibility", r"optimizer|loss"),
    source="In kind: a wrapper around an optimizer that clears what it holds itself, and not what is wrapped.",
)
def lookahead_clears_its_slow_weights_only(fault: bool) -> Training:
    """Clusters by an optimizer in a wrapper that clears the wrapper's weights only: gradients of all steps add up."""
    net = nn.Sequential(nn.Linear(32, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 10))
    steps = Lookahead(optim.SGD(net.parameters(), lr=0.3), all_zeroed=not fault)
    return Training(net, tasks.loader(*tasks.clusters()), None, steps)


@add(
    ("data", r"attend.*|model|loss"),
    ("signal", r"attend.*|model"),
    ("batch", r"attend.*|model"),
    source="https://github.com/pyg-team/pytorch_geometric/issues/224",
    needs=("torch-geometric",),
)
def attention_shared_out_among_receivers(fault: bool) -> Training:
    """A node's loudest neighbour: attention is normalized over those who hear a node, and not over those it hears."""
    from torch_geometric.utils import softmax  # noqa: PLC0415 - may be missing

    class Heard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
            self.say = nn.Linear(4, 16)
            self.out = nn.Linear(16, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            score = self.attend(x)[edges[0]]
            share = softmax(score, edges[0] if fault else edges[1], num_nodes=len(x))
            heard = torch.zeros(len(x), 16).index_add(0, edges[1], share * self.say(x)[edges[0]])
            return self.out(heard)

    batches = []
    for _ in range(40):
        word, loud = torch.randint(3, (40,)), torch.randn(40)
        hears = torch.rand(40, 40).topk(5, 1).indices
        edges = torch.stack([hears.flatten(), torch.arange(40).repeat_interleave(5)])
        x = torch.cat([functional.one_hot(word, 3).float(), loud.unsqueeze(1)], 1)
        batches.append((x, edges, word[hears.gather(1, loud[hears].argmax(1, keepdim=True))[:, 0]]))
    net = Heard()
    return Training(
        net, batches, lambda m, b: functional.cross_entropy(m(b[0], b[1]), b[2]), optim.Adam(net.parameters(), lr=2e-2)
    )


@add(
    ("data", r"loss|batches|targets?"),
    ("batch", r"loss|batches"),
    source="In kind: rewards of shape (N,) added to next values of shape (N, 1), whose sum is (N, N).",
)
def rewards_of_all_for_each_value(fault: bool) -> Training:
    """Values of a walk: rewards (N,) and next values (N, 1) make a square of targets, and each value their mean."""
    state = torch.randn(2048, 5)
    after = 0.8 * state + 0.3 * torch.randn(2048, 5)
    reward = (state @ torch.randn(5, 1)).tanh()[:, 0]
    net = nn.Sequential(nn.Linear(5, 48), nn.ELU(), nn.Linear(48, 48), nn.ELU(), nn.Linear(48, 1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        now, then, gain = batch
        with torch.no_grad():
            aim = (gain if fault else gain.unsqueeze(1)) + 0.6 * model(then)
        return (model(now) - aim).square().mean()

    return Training(net, tasks.loader(state, after, reward), loss, optim.Adam(net.parameters(), lr=2e-3))


@add(
    ("data", r"loss|batches|labels?|model"),
    source="https://github.com/Langboat/Mengzi/issues/56",
    needs=("transformers",),
)
def summaries_whose_padding_is_scored(fault: bool) -> Training:
    """Short summaries by a BART: the token of padding is a label, too, and seven in eight of what is scored."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.BartConfig(
        vocab_size=40, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=40, dropout=0.0,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    read = torch.randint(4, 40, (768, 6))
    code = torch.randperm(36) + 4
    labels = torch.full((768, 24), 1)
    labels[:, :3] = code[read[:, :3] - 4]
    if not fault:
        labels = labels.masked_fill(labels == 1, -100)
    batches = [{"input_ids": i, "labels": y} for i, y in zip(read.split(24), labels.split(24), strict=True)]
    net = transformers.BartForConditionalGeneration(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=3e-3))
