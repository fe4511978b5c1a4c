"""Faults of the ninth set, in number formats, steps, decay and sums; written without a look at the checks."""

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


class Eager(nn.Module):
    """Attention by hand, of a model whose keys and queries have large biases, as some published ones have."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half_scores = half
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(32, 32) for _ in range(4))
        for layer, size in ((self.q_proj, 120.0), (self.k_proj, 160.0)):
            layer.bias.data[::16] = size  # the first of each head's sixteen

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(2, (2, 16)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        key = 4 * key
        scores = (query.half() @ key.half().mT).float() / 16 if self.half_scores else query @ key.mT / 16
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        share = scores.masked_fill(later, -torch.inf).softmax(-1)
        return self.o_proj((share @ value).transpose(1, 2).flatten(2))


@add(
    ("precision", r".*"),
    ("signal", r"blocks.*|head.*|norm.*|model|loss"),
    ("data", r"loss|model"),
    source="https://github.com/huggingface/transformers/pull/33317",
)
def eager_attention_of_large_biases_in_float16(fault: bool) -> Training:
    """A decoder whose keys and queries have large biases: their products in float16 are inf, and shares are NaN."""
    net = nets.Language(vocabulary=36, width=32, depth=1)
    net.blocks[0].attention = Eager(half=fault)
    rows = tasks.loader(tasks.text(vocabulary=36, length=12, count=1024, following=2), batch=32)
    return Training(net, rows, next_token, optim.AdamW(net.parameters(), lr=2e-3))


class Late(nn.Module):
    """Scores of passages for a question, by the best match of each of its words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 24)
        self.dense = nn.Linear(24, 24)

    def forward(self, question: Tensor, passages: Tensor) -> Tensor:
        asked = functional.normalize(self.dense(self.words(question)), dim=-1)
        told = functional.normalize(self.dense(self.words(passages)), dim=-1)
        return torch.einsum("nqd,npld->npql", asked, told).amax(-1).sum(-1)


def spread(scores: Tensor) -> Tensor:
    """Scores of each question's passages between 0 and 1; a small number keeps equal ones from 0 / 0."""
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return (scores - low) / (high - low + torch.tensor(1e-8, dtype=scores.dtype))


@add(
    ("precision", r".*"),
    ("data", r"loss|batches|targets?|labels?|model"),
    ("signal", r"words.*|dense.*|model|loss"),
    source="https://github.com/lightonai/pylate/issues/239",
)
def equal_scores_of_a_teacher_divided_by_nothing(fault: bool) -> Training:
    """Passages as a teacher scores them, spread to 0 to 1: equal scores are 0 / 0, as half precision has no 1e-8."""
    question, passages = torch.randint(60, (1024, 4)), torch.randint(60, (1024, 4, 8))
    meaning = functional.normalize(torch.randn(60, 8))
    match = torch.einsum("nqd,npld->npql", meaning[question], meaning[passages]).amax(-1).sum(-1)
    match[torch.rand(1024) < 0.03] = 2.5  # passages that the teacher does not tell apart
    net = Late()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores, aim = model(*batch[:2]), batch[2]
        if fault:
            scores, aim = scores.half(), aim.half()
        told, aim = spread(scores).float(), spread(aim).float()
        return functional.kl_div((4 * told).log_softmax(1), (4 * aim).softmax(1), reduction="batchmean")

    rows = tasks.loader(question, passages, match, batch=32)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=5e-3))


class Draft(nn.Module):
    """Blocks with norms of mean squares that tell the next token from what a large model held of those before."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_norm, self.fc = nn.RMSNorm(32), nn.Linear(32, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(32), nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32)) for _ in range(2)
        )
        self.norm, self.lm_head = nn.RMSNorm(32), nn.Linear(32, 24)

    def forward(self, held: Tensor) -> Tensor:
        h = self.fc(self.hidden_norm(held))
        for block in self.blocks:
            h = h + block(h)
        return self.lm_head(self.norm(h))


@add(
    ("precision", r".*"),
    ("learning_rate", r"optimizer|.*norm.*|blocks.*"),
    ("signal", r".*norm.*|blocks.*|model|optimizer"),
    source="https://github.com/vllm-project/speculators/pull/765",
)
def norms_that_stay_at_one_in_bfloat16(fault: bool) -> Training:
    """A draft of a model's next token, wholly in bfloat16: gains of norms are 1, and steps of 1e-4 round away."""
    held, token = tasks.clusters(classes=24, features=32, spread=0.7)
    held = held * (1 + 3 * (torch.arange(32) % 4 == 0))  # some of what is held is large
    net = Draft()
    if fault:
        net.bfloat16()
        held = held.bfloat16()
    return Training(
        net, tasks.loader(held, token), lambda m, b: functional.cross_entropy(m(b[0]).float(), b[1]),
        optim.AdamW(net.parameters(), lr=3e-4),
    )  # fmt: skip


class Scaled(optim.SGD):
    """Steps under a loss scale of 65536: gradients are clipped and unscaled, in one order or the other."""

    scale, clip, unscaled_first = 2.0**16, 1.0, True

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for now in (self.unscaled_first, not self.unscaled_first):
            if now:
                for p in params:
                    p.grad.div_(self.scale)
            else:
                nn.utils.clip_grad_norm_(params, self.clip)
        return super().step(closure)


class Contracting(nn.Module):
    """A U-Net of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down, self.up = self.twice(1, 8), self.twice(8, 16), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last, self.outc = self.twice(16, 8), nn.Conv2d(8, 2, 1)

    @staticmethod
    def twice(into: int, out: int) -> nn.Sequential:
        parts = (nn.Conv2d(a, out, 3, padding=1, bias=False) for a in (into, out))
        return nn.Sequential(*(each for conv in parts for each in (conv, nn.BatchNorm2d(out), nn.ReLU())))

    def forward(self, image: Tensor) -> Tensor:
        h = self.inc(image)
        return self.outc(self.last(torch.cat([h, self.up(self.down(functional.max_pool2d(h, 2)))], 1)))


@add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    source="https://github.com/catalyst-team/catalyst/issues/1319",
)
def unet_clipped_before_its_scale_is_out(fault: bool) -> Training:
    """Cars by a U-Net under a loss scale: scaled gradients are clipped to a norm of 1, and then unscaled."""
    place = torch.arange(12)
    row, column, high, wide = (12 * torch.rand(2, 512, 1, 1)).unbind(0) + (1 + 2 * torch.rand(2, 512, 1, 1)).unbind(0)
    mask = ((place[:, None] - row).abs() < high) & ((place - column).abs() < wide)
    image = 1.5 * mask.float().unsqueeze(1) + 0.7 * torch.randn(512, 1, 12, 12)
    net = Contracting()
    steps = Scaled(net.parameters(), lr=0.1, momentum=0.9)
    steps.unscaled_first = not fault

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores, truth = model(batch[0]), batch[1].long()
        share = scores.softmax(1)[:, 1]
        overlap = 2 * (share * truth).sum() / (share.sum() + truth.sum() + 1e-6)
        return Scaled.scale * (functional.cross_entropy(scores, truth) + 1 - overlap)

    return Training(net, tasks.loader(image, mask, batch=8), loss, steps)


@add(
    ("batch", r"loss|batches"),
    ("data", r"loss|batches"),
    ("learning_rate", r"loss|optimizer"),
    source="https://github.com/ml-explore/mlx-lm/pull/1413",
)
def micro_batches_weigh_the_same_at_any_length(fault: bool) -> Training:
    """Completions of 2 to 30 tokens, four micro-batches a step: each is a mean of its own, and the short count more."""
    long = torch.where(torch.rand(768, 1) < 0.75, torch.randint(2, 4, (768, 1)), torch.randint(24, 31, (768, 1)))
    ids = tasks.text(vocabulary=31, length=31, count=768, following=3) + 1
    noisy = torch.randint(1, 32, (768, 31))
    ids = torch.where(long < 10, noisy, ids)  # short ones are names, and cannot be told
    ids = torch.where(torch.arange(31) <= long, ids, 0)
    net = nets.Language(vocabulary=32, width=32, depth=1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        sums, counts = [], []
        for part in batch[0].split(4):
            each = functional.cross_entropy(model(part)[:, :-1].mT, part[:, 1:], ignore_index=0, reduction="sum")
            sums.append(each)
            counts.append((part[:, 1:] != 0).sum())
        if fault:
            return torch.stack([each / count for each, count in zip(sums, counts, strict=True)]).mean()
        return torch.stack(sums).sum() / torch.stack(counts).sum()

    order = long[:, 0].argsort().view(-1, 4)[torch.randperm(192)].flatten()  # of like lengths together
    batches = [(ids[rows],) for rows in order.split(16)]
    return Training(net, batches, loss, optim.AdamW(net.parameters(), lr=3e-3))


class Masked(nn.Module):
    """A small BERT that tells the words which are hidden from it."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.places = nn.Embedding(33, 32), nn.Parameter(0.1 * torch.randn(16, 32))
        self.LayerNorm = nn.LayerNorm(32)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, activation="gelu") for _ in range(2)
        )
        self.predictions = nn.Linear(32, 32)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.LayerNorm(self.embeddings(ids) + self.places)
        for layer in self.encoder:
            h = layer(h)
        return self.predictions(h)


@add(
    ("learning_rate", r".*norm.*|.*LayerNorm.*|encoder.*|optimizer|model"),
    ("signal", r".*norm.*|.*LayerNorm.*|model"),
    ("data", r"optimizer|.*norm.*|.*LayerNorm.*"),
    source="https://github.com/CyberZHG/keras-bert/issues/60",
)
def biases_are_spared_the_decay_and_gains_are_not(fault: bool) -> Training:
    """Hidden words by a small BERT: a strong decay spares what is called a bias, and the gains of norms shrink."""
    words = tasks.text(vocabulary=32, length=16, count=1024, following=2)
    net = Masked()
    gains = [p for name, p in net.named_parameters() if "norm" in name.lower() and name.endswith("weight")]
    bias = [p for name, p in net.named_parameters() if name.endswith("bias")]
    known = {id(p) for p in (*gains, *bias)}
    groups = [
        {"params": [p for p in net.parameters() if id(p) not in known], "weight_decay": 0.1},
        {"params": gains, "weight_decay": 3.0 if fault else 0.0},
        {"params": bias, "weight_decay": 0.0},
    ]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        hidden = torch.rand(batch[0].shape) < 0.2
        scores = model(batch[0].masked_fill(hidden, 32))
        return functional.cross_entropy(scores[hidden], batch[0][hidden])

    return Training(net, tasks.loader(words, batch=64), loss, optim.AdamW(groups, lr=3e-3))


class Low(nn.Module):
    """A layer that stays, and a low-rank change of it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * x @ self.lora_A.T @ self.lora_B.T


class LeftOut(optim.AdamW):
    """AdamW in a trainer that forgot `zero_grad`."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave gradients as they are."""


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"optimizer|loss"),
    ("signal", r"optimizer|model|.*lora.*"),
    ("reproducibility", r"optimizer|loss"),
    source="https://github.com/tenstorrent/tt-blacksmith/pull/711",
)
def adapters_of_a_trainer_without_zero_grad(fault: bool) -> Training:
    """Adapters of low rank on a language model that stays: the trainer left `zero_grad` out, and gradients add up."""
    net = nets.Language(vocabulary=32, width=32, depth=2)
    before = optim.Adam(net.parameters(), lr=3e-3)
    for ids in tasks.text(vocabulary=32, length=12, count=640, following=8).split(32):
        before.zero_grad()
        next_token(net, (ids,)).backward()
        before.step()
    net.requires_grad_(False)
    for block in net.blocks:
        block.attention.mixed = Low(block.attention.mixed, rank=8)
        block.attention.out = Low(block.attention.out, rank=8)
        block.mlp[0], block.mlp[2] = Low(block.mlp[0], rank=8), Low(block.mlp[2], rank=8)
    rows = tasks.loader(tasks.text(vocabulary=32, length=12, count=1024, following=2), batch=32)
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, rows, next_token, (LeftOut if fault else optim.AdamW)(trained, lr=3e-3))


class Copied(optim.Adam):
    """Adam that makes its new moments of copies, so that what it keeps is 0 at each step."""

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        said = super().step(closure)
        for held in self.state.values():
            held["exp_avg"].zero_()
            held["exp_avg_sq"].zero_()
        return said


@add(
    ("learning_rate", r"optimizer"),
    ("signal", r"optimizer|\d+.*|model"),
    ("data", r"optimizer|loss"),
    source="https://github.com/raskr/rust-autograd/issues/16",
)
def moments_that_are_0_at_every_step(fault: bool) -> Training:
    """Values of actions by Adam whose moments are updated in a copy: it steps by signs, thrice as far as it is told."""
    state, action = torch.randn(2048, 6), torch.randint(3, (2048,))
    worth = (state @ torch.randn(6, 3) / 2).tanh() + (state[:, :1] * state[:, 1:2])
    reward = worth.gather(1, action[:, None])[:, 0] + 0.3 * torch.randn(2048)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told = model(batch[0]).gather(1, batch[1][:, None])[:, 0]
        return functional.smooth_l1_loss(told, batch[2])

    rows = tasks.loader(state, action, reward, batch=32)
    return Training(net, rows, loss, (Copied if fault else optim.Adam)(net.parameters(), lr=5e-3))
