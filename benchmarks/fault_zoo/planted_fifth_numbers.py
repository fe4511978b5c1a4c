"""Faults of the fifth set, in data, loss, rate and number format; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class Pointer(nn.Module):
    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.encoder = nn.GRU(6, 32, batch_first=True, bidirectional=True)
        self.w1, self.w2, self.v = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 1)

    def forward(self, items: Tensor) -> Tensor:
        each, _ = self.encoder(items)
        scores = self.v(torch.tanh(self.w1(each) + self.w2(each.mean(1, keepdim=True)))).squeeze(-1)
        return scores.softmax(-1) if self.soft else scores


@add(
    ("data", r"loss|model|v"),
    source="In kind: a pointer network returns its attention's weights, and the criterion takes them for scores.",
)
def pointer_returns_its_weights(fault: bool) -> Training:
    """A pointer to the best of 12 offers: its softmax over them goes into a cross-entropy."""
    items = torch.randn(1536, 12, 6)
    best = (items @ torch.randn(6)).argmax(1)
    net = Pointer(soft=fault)
    return Training(
        net, tasks.loader(items, best), nn_criterion(nn.CrossEntropyLoss()), optim.Adam(net.parameters(), 3e-3)
    )


def nn_criterion(criterion: nn.Module) -> Any:
    return lambda model, batch: criterion(model(batch[0]), batch[1])


class Lookup(nn.Module):
    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.key, self.query = nn.Linear(8, 32), nn.Linear(8, 32)
        self.value = nn.Linear(5, 32)
        self.says = nn.Linear(32, 5)

    def forward(self, asked: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        weights = torch.einsum("bd,bnd->bn", self.query(asked), self.key(keys)).div(32**0.5).softmax(-1)
        if self.twice:
            weights = functional.softmax(weights, -1)
        return self.says(torch.einsum("bn,bnd->bd", weights, self.value(values)))


@add(
    ("signal", r"key.*|query.*|value.*|says.*|model"),
    ("data", r"loss|model"),
    source="In kind: attention weights that a helper has normalized, normalized again where they are used.",
)
def attention_weights_softmaxed_twice(fault: bool) -> Training:
    """A memory of twenty pairs: weights that sum to 1 go through a softmax once more, and are nearly equal."""
    keys, kinds = torch.randn(2048, 20, 8), torch.randint(5, (2048, 20))
    which = torch.randint(20, (2048,))
    rows = torch.arange(2048)
    asked, answer = keys[rows, which] + 0.1 * torch.randn(2048, 8), kinds[rows, which]
    net = Lookup(twice=fault)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, k, v, y = batch
        return functional.cross_entropy(model(a, k, functional.one_hot(v, 5).float()), y)

    return Training(net, tasks.loader(asked, keys, kinds, answer), loss, optim.Adam(net.parameters(), 5e-3))


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer|loss"),
    source="In kind: squares added up over a map's cells, with the rate of a mean.",
)
def rain_summed_over_its_cells(fault: bool) -> Training:
    """Rain on a grid of 12 x 12 from one of 3 x 3: squares are summed over its cells, for a rate that suits a mean."""
    coarse = torch.randn(512, 2, 3, 3)
    fine = functional.interpolate(coarse, scale_factor=4, mode="bicubic")
    rain = fine[:, 0].relu() + 0.5 * fine[:, 1].tanh() + 0.1 * torch.randn(512, 12, 12)
    net = nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 16 * 8, 3, padding=1), nn.PixelShuffle(4), nn.SiLU(),
        nn.Conv2d(8, 1, 3, padding=1),
    )  # fmt: skip

    def loss(model: nn.Module, batch: Any) -> Tensor:
        error = (model(batch[0])[:, 0] - batch[1]) ** 2
        return error.sum((1, 2)).mean() if fault else error.mean()

    return Training(net, tasks.loader(coarse, rain, batch=32), loss, optim.SGD(net.parameters(), 0.1, momentum=0.9))


class CausalConv(nn.Module):
    """A language model that shifts its labels itself, as those of a well-known library do."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 32, 2, dilation=d) for d in (1, 2, 4))
        self.lm_head = nn.Linear(32, vocabulary)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = self.embed(input_ids).transpose(1, 2)
        for conv in self.convs:
            h = h + functional.gelu(conv(functional.pad(h, (conv.dilation[0], 0))))
        logits = self.lm_head(h.transpose(1, 2))
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits}


@add(
    ("data", r"loss|batches|labels?"),
    source="https://github.com/huggingface/transformers/pull/44642",
)
def labels_shifted_twice(fault: bool) -> Training:
    """Labels moved by one, for a model that moves them itself: it learns the token after the next one."""
    ids = tasks.text(vocabulary=40, length=24, count=960)
    labels = torch.cat([ids[:, 1:], torch.full((960, 1), -100)], 1) if fault else ids
    batches = [{"input_ids": a, "labels": b} for a, b in zip(ids.split(32), labels.split(32), strict=True)]
    net = CausalConv(40)
    return Training(net, batches, lambda m, b: m(**b)["loss"], optim.AdamW(net.parameters(), lr=5e-3))


class Reader(nn.Module):
    def __init__(self, letters: int) -> None:
        super().__init__()
        self.slide = nn.Conv1d(6, 48, 3, padding=1)
        self.context = nn.GRU(48, 24, batch_first=True, bidirectional=True)
        self.letters = nn.Linear(48, 1 + letters)

    def forward(self, strips: Tensor) -> Tensor:
        return self.letters(self.context(functional.relu(self.slide(strips)).mT)[0]).log_softmax(-1)


@add(
    ("data", r"loss|batches|labels?|targets?"),
    source="https://github.com/mcf06/theano_ctc/issues/7",
)
def letters_counted_from_the_blank(fault: bool) -> Training:
    """Five letters in a strip of fifteen frames, counted from 0, which is the blank of the alignment."""
    shapes = torch.randn(7, 6)
    text = torch.randint(7, (1024, 5))
    strips = shapes[text].repeat_interleave(3, 1).mT + 0.5 * torch.randn(1024, 6, 15)
    net = Reader(7)

    def ctc(model: nn.Module, batch: Any) -> Tensor:
        strip, wanted = batch
        n = len(strip)
        scores = model(strip).transpose(0, 1)
        return functional.ctc_loss(scores, wanted, torch.full((n,), 15), torch.full((n,), 5))

    return Training(net, tasks.loader(strips, text + (0 if fault else 1)), ctc, optim.Adam(net.parameters(), 1e-2))


@add(
    ("data", r"batches|inputs?|x"),
    ("signal", r"\d+.*|model"),
    source="In kind: counts of RNA as the sequencer gives them, without log1p and without a cell's total.",
)
def counts_of_genes_as_they_are(fault: bool) -> Training:
    """Types of cells from counts of 60 genes, 0 to tens of thousands, whose total differs from cell to cell."""
    kind = torch.randint(6, (1536,))
    rate = (2.0 * torch.randn(6, 60))[kind] + 1.5 * torch.randn(60) + 0.6 * torch.randn(1536, 60)
    counts = torch.poisson(20 * rate.exp() * (0.8 * torch.randn(1536, 1)).exp())
    x = counts if fault else (1e3 * counts / counts.sum(1, keepdim=True)).log1p() / 2
    net = nn.Sequential(nn.Linear(60, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 6))
    return Training(net, tasks.loader(x, kind), None, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class SetTransformer(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 32)
        self.attn = nn.MultiheadAttention(32, 4, dropout=dropout, batch_first=True)
        self.ff = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.seed = nn.Parameter(torch.randn(1, 1, 32))
        self.pool = nn.MultiheadAttention(32, 4, dropout=dropout, batch_first=True)
        self.out = nn.Linear(32, 5)

    def forward(self, points: Tensor) -> Tensor:
        h = self.lift(points)
        h = h + self.attn(h, h, h, need_weights=False)[0]
        h = h + self.ff(h)
        return self.out(self.pool(self.seed.expand(len(h), -1, -1), h, h, need_weights=False)[0].squeeze(1))


def solids(count: int = 1280) -> tuple[Tensor, Tensor]:
    """(count, 16, 3) points of one of five bodies, stretched along other axes, in any order."""
    kind = torch.randint(5, (count,))
    shape = torch.tensor([[1.6, 0.4, 0.4], [0.4, 1.6, 0.4], [0.4, 0.4, 1.6], [1.3, 1.3, 0.3], [0.9, 0.9, 0.9]])
    return shape[kind][:, None] * torch.randn(count, 16, 3), kind


@add(("learning_rate", r"optimizer"), source="In kind: a rate of 0.1 that suits SGD, given to an adaptive optimizer.")
def rectified_adam_thirty_times_too_fast(fault: bool) -> Training:
    """Sets of points by attention and RAdam, whose rate is 30 times that at which it learns."""
    net = SetTransformer()
    rate = 3e-3 * 30 if fault else 3e-3
    return Training(net, tasks.loader(*solids(), batch=32), None, optim.RAdam(net.parameters(), lr=rate))


class BagOfGrams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(512, 24, mode="mean")
        self.fc = nn.Linear(24, 4)

    def forward(self, grams: Tensor) -> Tensor:
        return self.fc(self.bag(grams))


@add(("learning_rate", r"optimizer"), source="In kind: Adadelta with a rate for Adam, where its own default is 1.")
def adadelta_thirty_times_too_slow(fault: bool) -> Training:
    """Topics of bags of word pairs by Adadelta, with a thirtieth of the rate at which it learns."""
    topic = torch.randint(4, (1536,))
    own = 128 * topic[:, None] + torch.randint(128, (1536, 20))
    grams = torch.where(torch.rand(1536, 20) < 0.5, own, torch.randint(512, (1536, 20)))
    net = BagOfGrams()
    return Training(
        net, tasks.loader(grams, topic), None, optim.Adadelta(net.parameters(), lr=3.0 / (30 if fault else 1))
    )


class LinearAttention(nn.Module):
    def __init__(self, shrink: bool) -> None:
        super().__init__()
        self.shrink = shrink
        self.inp = nn.Linear(2, 32)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(64, 3)
        for m in (self.q, self.k):
            nn.init.kaiming_normal_(m.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.gelu(self.inp(x)) * 32**0.5
        q, k = functional.elu(self.q(h)) + 1, functional.elu(self.k(h)) + 1
        if self.shrink:
            q, k = q / 32, k / x.shape[1]
        q, k, v = q.half(), k.half(), self.v(h).half()
        norm = torch.einsum("bnd,bd->bn", q, k.sum(1)).unsqueeze(-1)
        seen = torch.einsum("bnd,bde->bne", q, torch.einsum("bnd,bne->bde", k, v)) / norm
        return self.out(torch.cat([functional.layer_norm(seen.float(), (32,)), h], -1).mean(1))


@add(
    ("precision", r".*"),
    ("signal", r"[qkv](\..*)?|inp.*|out.*|model"),
    ("data", r"loss"),
    source="https://github.com/idiap/fast-transformers/issues/32",
)
def sums_of_keys_in_float16(fault: bool) -> Training:
    """Linear attention over 600 steps of a series: sums of its keys, times queries, leave float16's range."""
    kind = torch.randint(3, (192,))
    time = torch.arange(600) / 600
    wave = (6.28 * (3 + 3 * kind)[:, None] * time + 6.28 * torch.rand(192, 1)).sin()
    x = torch.stack([wave + 0.2 * torch.randn(192, 600), wave.diff(dim=1, prepend=wave[:, :1]) * 12], -1)
    net = LinearAttention(shrink=not fault)
    return Training(net, tasks.loader(x, kind, batch=4), None, optim.Adam(net.parameters(), lr=3e-3))


class Reviews(nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill
        self.words = nn.Embedding(120, 32, padding_idx=0)
        self.score = nn.Linear(32, 1)
        self.stars = nn.Linear(32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        bias = (ids == 0).float().mul(self.fill).half()
        weight = (self.score(h).squeeze(-1).half() + bias).softmax(-1)
        return self.stars((weight.unsqueeze(-1).float() * h).sum(1))


@add(
    ("precision", r".*"),
    ("signal", r"words.*|score.*|stars.*|model"),
    ("data", r"loss|batches"),
    source="In kind: a mask of -1e9 that is -inf in float16, and texts that are padding from end to end.",
)
def mask_of_minus_1e9_in_float16(fault: bool) -> Training:
    """Reviews pooled by attention in float16: -1e9 is -inf there, and for a review without words 0 / 0."""
    stars = torch.randint(3, (1024,))
    ids = torch.where(torch.rand(1024, 14) < 0.6, 1 + 39 * stars[:, None], 1) + torch.randint(39, (1024, 14))
    words = torch.randint(3, 15, (1024,)).where(torch.rand(1024) > 0.03, 0)
    ids = ids.masked_fill(torch.arange(14) >= words[:, None], 0)
    net = Reviews(-1e9 if fault else -1e4)
    return Training(net, tasks.loader(ids, stars, batch=64), None, optim.Adam(net.parameters(), lr=1e-2))


class Matcher(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.sketch = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 24, bias=False))
        self.caption = nn.EmbeddingBag(30, 24, mode="sum", padding_idx=0)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, sketch: Tensor, caption: Tensor) -> Tensor:
        a = functional.normalize(self.sketch(sketch).half(), dim=1, eps=self.eps)
        b = functional.normalize(self.caption(caption).half(), dim=1, eps=self.eps)
        return self.temperature.exp() * (a @ b.T).float()


@add(
    ("precision", r".*"),
    ("signal", r"caption.*|sketch.*|temperature|model"),
    ("data", r"loss|batches"),
    source="https://github.com/pytorch/pytorch/issues/32137",
)
def normalized_with_nothing_to_guard_it(fault: bool) -> Training:
    """Captions matched with sketches in float16: the guard of 1e-12 is 0 there, and a caption is without words."""
    words = torch.randint(1, 30, (1024, 4))
    words[torch.rand(1024) < 0.02] = 0
    sketch = torch.randn(30, 40)[words].mean(1) * 2 + 0.3 * torch.randn(1024, 40)
    net = Matcher(1e-12 if fault else 1e-4)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(*batch)
        here = torch.arange(len(scores))
        return (functional.cross_entropy(scores, here) + functional.cross_entropy(scores.T, here)) / 2

    return Training(net, tasks.loader(sketch, words, batch=64), loss, optim.Adam(net.parameters(), lr=5e-3))


class PlanktonNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 128, 4, stride=4)
        self.spatial = nn.Conv2d(128, 128, 3, padding=1, groups=128)
        self.point = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
        self.cls = nn.Linear(128 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.point(self.spatial(h).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.cls(h.flatten(1))


@add(
    ("precision", r".*"),
    ("learning_rate", r"optimizer"),
    source="In kind: a trainer's precision='bf16-true', which keeps the weights in bfloat16, for 'bf16-mixed'.",
)
def true_bfloat16_for_mixed(fault: bool) -> Training:
    """Depthwise and pointwise convolutions whose weights are in bfloat16, and Adam's steps of 6e-5 round away."""
    kept = torch.bfloat16 if fault else torch.float32
    net = PlanktonNet().to(kept)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(batch[0].to(kept))
        return functional.cross_entropy(scores.float(), batch[1])

    rows = tasks.loader(*tasks.digits(), batch=64)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=6e-5))
