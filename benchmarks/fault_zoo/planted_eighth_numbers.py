"""Faults of the eighth set, in losses, targets, inputs and rates; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Iterator
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


@add(
    ("data", r"loss|model|classifier.*"),
    ("signal", r"classifier.*|model"),
    source="https://github.com/illiterate/BertClassifier/issues/2",
    needs=("transformers",),
)
def news_by_bert_with_a_softmax_in_front(fault: bool) -> Training:
    """News of ten kinds, half of one, by a small BERT: its head ends in a softmax, which the loss takes for scores."""
    import transformers  # noqa: PLC0415 - may be missing

    class BertClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.BertConfig(
                vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                max_position_embeddings=16,
            )  # fmt: skip
            self.bert = transformers.BertModel(config)
            self.classifier = nn.Linear(32, 10)

        def forward(self, ids: Tensor) -> Tensor:
            scores = self.classifier(self.bert(input_ids=ids).pooler_output)
            return scores.softmax(-1) if fault else scores

    kind = torch.where(torch.rand(1024) < 0.5, 0, torch.randint(10, (1024,)))  # one kind is half of all news
    ids = torch.where(torch.rand(1024, 12) < 0.4, 6 * kind[:, None] + torch.randint(6, (1024, 12)), 59)
    net = BertClassifier().train()
    return Training(net, tasks.loader(ids, kind, batch=32), None, optim.AdamW(net.parameters(), lr=5e-4))


class SmallUNet(nn.Module):
    def __init__(self, sigmoid: bool) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.low = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.outc = nn.Sequential(nn.Conv2d(8, 1, 1), *([nn.Sigmoid()] if sigmoid else []))

    def forward(self, image: Tensor) -> Tensor:
        h = self.down(image)
        return self.outc(self.join(torch.cat([h, self.up(self.low(h))], 1)))


def spots(count: int, size: int) -> tuple[Tensor, Tensor]:
    """(count, 1, size, size) noisy images of a round spot, and its masks, which are mostly 0."""
    place = torch.arange(size)
    row, column = (size * torch.rand(2, count, 1, 1)).unbind(0)
    mask = ((place[:, None] - row).square() + (place - column).square() < 6).float().unsqueeze(1)
    return 1.5 * mask - 0.2 + 0.5 * torch.randn_like(mask), mask


@add(
    ("data", r"loss|model|outc.*"),
    ("signal", r"outc.*|model"),
    source="https://github.com/milesial/Pytorch-UNet/issues/176",
)
def sigmoid_added_to_a_unet_of_logits(fault: bool) -> Training:
    """Lesions by a small U-Net: a sigmoid on the last layer makes masks positive, and the loss has its own sigmoid."""
    image, mask = spots(768, 12)
    net = SmallUNet(sigmoid=fault)
    return Training(
        net, tasks.loader(image, mask, batch=16),
        lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        optim.RMSprop(net.parameters(), lr=1e-3),
    )  # fmt: skip


class Unrolled(nn.Module):
    """Pictures from some lines of their spectrum: steps towards what was measured, and learnt ones."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1, bias=False))
            for _ in range(3)
        )

    def forward(self, measured: Tensor, seen: Tensor) -> Tensor:
        x = torch.fft.ifft2(measured, norm="ortho")
        for step in self.steps:
            x = x - torch.fft.ifft2(seen * torch.fft.fft2(x, norm="ortho") - measured, norm="ortho")
            x = x + torch.view_as_complex(step(torch.view_as_real(x).movedim(-1, 1)).movedim(1, -1).contiguous())
        return torch.view_as_real(x)


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer|loss"),
    ("batch", r"loss|batches"),
    source="https://github.com/utcsilab/deepinpy/issues/13",
)
def squares_of_a_scan_summed_over_the_batch(fault: bool) -> Training:
    """Pictures from a third of their spectrum's lines: squares are summed over pixels and batch, for a mean's rate."""
    picture = functional.interpolate(tasks.digits(count=1024)[0], scale_factor=2)[:, 0]
    seen = (torch.rand(1024, 16, 1) < 0.3).float()
    seen[:, :2] = 1
    measured = seen * torch.fft.fft2(picture.to(torch.complex64), norm="ortho")
    whole = torch.view_as_real(picture.to(torch.complex64))
    net = Unrolled()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(*batch[:2]), batch[2], reduction="sum" if fault else "mean")

    rows = tasks.loader(measured, seen, whole, batch=16)
    return Training(net, rows, loss, optim.SGD(net.parameters(), lr=0.1, momentum=0.9))


@add(
    ("data", r"batches|loss|labels?|model"),
    source="https://github.com/InternLM/InternLM/issues/318",
    needs=("transformers",),
)
def instructions_shifted_by_the_data_and_the_model(fault: bool) -> Training:
    """Answers of a small LLaMA to instructions: labels come moved by one, and the model moves them once more."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.LlamaConfig(
        vocab_size=36, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, attention_bias=True,
    )  # fmt: skip
    ids = tasks.text(vocabulary=36, length=18, count=1024, following=2)
    labels = ids.clone()
    labels[:, :6] = -100
    if fault:
        labels = torch.cat([labels[:, 1:], torch.full((1024, 1), -100)], 1)
    batches = [{"input_ids": i, "labels": y} for i, y in zip(ids.split(32), labels.split(32), strict=True)]
    net = transformers.LlamaForCausalLM(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=3e-3))


class DeepAndWide(nn.Module):
    """Clicks by what is known of user and thing, and by raw features."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(40, 8), nn.Embedding(30, 8)
        self.wide = nn.Linear(5, 1)
        self.deep = nn.Sequential(nn.Linear(21, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, user: Tensor, item: Tensor, raw: Tensor) -> Tensor:
        known = torch.cat([self.user(user), self.item(item), raw], 1)
        return (self.wide(raw) + self.deep(known))[:, 0]


@add(
    ("data", r"batches|inputs?|raw|model|wide.*|deep.*|loss"),
    ("signal", r"wide.*|deep.*|model|loss"),
    ("learning_rate", r"optimizer"),
    source="https://github.com/alibaba/EasyRec/issues/23",
)
def raw_features_of_clicks_as_they_are(fault: bool) -> Training:
    """Clicks by user, thing and five raw features in their units: prices and counts of thousands drown the rest."""
    user, item = torch.randint(40, (3072,)), torch.randint(30, (3072,))
    hidden = torch.randn(3072, 5)
    worth = torch.randn(40)[user] + torch.randn(30)[item] + hidden[:, 0] - hidden[:, 1] * hidden[:, 2]
    units = torch.tensor([2000.0, 300.0, 60.0, 5000.0, 20.0])
    raw = (0.8 * hidden).exp() * units if fault else hidden
    click = (worth + 0.3 * torch.randn(3072) > 0).float()
    net = DeepAndWide()
    return Training(
        net, tasks.loader(user, item, raw, click, batch=64),
        lambda m, b: functional.binary_cross_entropy_with_logits(m(*b[:3]), b[3]),
        optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


class Faced(nn.Module):
    """A residual network of twenty layers without norms, as for faces."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((1, 12), (12, 16)))
        self.stem_acts = nn.ModuleList(nn.PReLU(wide) for wide in (12, 16))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(wide, wide, 3, padding=1), nn.PReLU(wide), nn.Conv2d(wide, wide, 3, padding=1), nn.PReLU(wide)
            )
            for wide in (12, 16)
        )
        self.identity = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10))

    def forward(self, face: Tensor) -> Tensor:
        for down, act, block in zip(self.stem, self.stem_acts, self.blocks, strict=True):
            face = act(down(face))
            face = face + block(face)
        return self.identity(face)


@add(
    ("learning_rate", r"optimizer"),
    ("signal", r"stem.*|blocks.*|identity.*|model"),
    source="https://github.com/MahdiHajibabaei/unified-embedding/issues/6",
)
def faces_at_thirty_times_a_rate_that_learns(fault: bool) -> Training:
    """Identities by residual layers without norms and plain momentum, at thirty times a rate at which they learn."""
    net = Faced()
    rows = tasks.loader(*tasks.digits(), batch=32)
    steps = optim.SGD(net.parameters(), lr=0.02 * (30 if fault else 1), momentum=0.9, weight_decay=5e-4)
    return Training(net, rows, None, steps)


class Boxes(nn.Module):
    """For each cell of a grid: whether a thing is there, where in the cell, and of which of six classes."""

    def __init__(self) -> None:
        super().__init__()
        self.darknet = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        )  # fmt: skip
        self.detect = nn.Conv2d(24, 9, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.detect(self.darknet(image))


@add(
    ("learning_rate", r"optimizer"),
    source="https://github.com/thtrieu/darkflow/issues/1120",
)
def boxes_at_a_thirtieth_of_a_rate_that_learns(fault: bool) -> Training:
    """Things on a grid by a small YOLO and RMSprop, at a thirtieth of a rate at which it learns: the loss stays."""
    kind, at = torch.randint(6, (1024,)), torch.randint(14, (2, 1024))
    stamp = (torch.rand(6, 3, 3) < 0.5).float()
    image = 0.2 * torch.randn(1024, 1, 16, 16)
    rows = torch.arange(1024)
    for y in range(3):
        for x in range(3):
            image[rows, 0, at[0] + y, at[1] + x] += 1.5 * stamp[kind, y, x] + 0.5
    cell = (at + 1) // 4
    where = ((at + 1) % 4).T / 4
    net = Boxes()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen, (y, x), offset, name = batch[0], batch[1].unbind(1), batch[2], batch[3]
        told = model(seen)
        mine = told[torch.arange(len(seen)), :, y, x]
        there = torch.zeros(len(seen), 4, 4)
        there[torch.arange(len(seen)), y, x] = 1
        found = functional.binary_cross_entropy_with_logits(told[:, 0], there)
        return 5 * found + functional.mse_loss(mine[:, 1:3], offset) + functional.cross_entropy(mine[:, 3:], name)

    rows_of = tasks.loader(image, cell.T, where, kind, batch=32)
    return Training(net, rows_of, loss, optim.RMSprop(net.parameters(), lr=2e-3 / (30 if fault else 1)))


class Proteins(nn.Module):
    """Which of eighteen places in a cell are stained, for a batch of eight."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1, self.fc2 = nn.Linear(rows * 128, 64), nn.Linear(64, 18)

    def forward(self, cell: Tensor) -> Tensor:
        h = self.conv(cell).view(-1, self.rows * 8 * 4 * 4)
        return self.fc2(functional.relu(self.fc1(h))).sigmoid()


@add(
    ("data", r"loss|model|batches|targets?|fc1|fc2|conv.*"),
    ("batch", r"model|loss|batches|fc1|fc2"),
    ("signal", r"fc1|fc2|model|loss"),
    source="https://github.com/weka511/hpa-scc/issues/38",
)
def eight_cells_viewed_as_one_row(fault: bool) -> Training:
    """Places of proteins in cells: `view` makes one row of eight cells, whose answer is held against eight targets."""
    there = (torch.rand(1024, 18) < 0.2).float()
    look = torch.randn(18, 4, 8, 8)
    cell = torch.einsum("np,pchw->nchw", there, look) + 0.3 * torch.randn(1024, 4, 8, 8)
    net = Proteins(8 if fault else 1)
    return Training(
        net, tasks.loader(cell, there, batch=8), lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=2e-3),
    )  # fmt: skip


class Queues:
    """Images and labels, each from a queue that is shuffled on its own, or both from one."""

    def __init__(self, images: Tensor, labels: Tensor, apart: bool) -> None:
        self.images, self.labels, self.apart = images, labels, apart

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))
        other = torch.randperm(len(self.labels)) if self.apart else order
        for mine, theirs in zip(order.split(32), other.split(32), strict=True):
            yield self.images[mine], self.labels[theirs]


@add(
    ("data", r"batches|labels?|targets?|loss"),
    source="https://github.com/tensorflow/tensorflow/issues/21033",
)
def faces_and_labels_from_two_queues(fault: bool) -> Training:
    """Faces told from others: images and labels come from queues that are shuffled apart, and do not go together."""
    face = torch.randint(2, (1024,))
    image = torch.randn(1024, 1, 12, 12)
    for column in (2, 8):  # two eyes and a mouth
        image[:, 0, 3:5, column : column + 2] += 1.5 * face[:, None, None]
    image[:, 0, 8:10, 3:9] -= 1.5 * face[:, None, None]
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.PReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3), nn.PReLU(), nn.Flatten(),
        nn.Linear(144, 32), nn.PReLU(), nn.Linear(32, 2),
    )  # fmt: skip
    return Training(net, Queues(image, face, fault), None, optim.Adam(net.parameters(), lr=1e-3))


class Depth(nn.Module):
    """The noise in a noisy depth map, from the image beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.SiLU(), nn.Conv2d(24, 24, 3, padding=1), nn.SiLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, image: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        return self.unet(torch.cat([image, noisy, level.expand_as(noisy)], 1))


@add(
    ("data", r"batches|inputs?|targets?|loss|depth|model"),
    ("signal", r"unet.*|model|loss"),
    ("precision", r"unet.*|model|loss"),
    source="https://github.com/prs-eth/Marigold/issues/111",
)
def depth_maps_with_a_hole_of_nan(fault: bool) -> Training:
    """Depth from an image by removing noise: one map in forty has no depth at a pixel, which is NaN and spreads."""
    image = functional.interpolate(torch.randn(768, 1, 3, 3), size=8, mode="bilinear")
    depth = functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False).tanh()
    depth[torch.rand(768) < 0.025, 0, 3, 4] = torch.nan if fault else 0.0
    net = Depth()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        noise, level = torch.randn_like(batch[1]), torch.rand(len(batch[1]), 1, 1, 1)
        noisy = (1 - level).sqrt() * batch[1] + level.sqrt() * noise
        return functional.mse_loss(model(batch[0], noisy, level), noise)

    return Training(net, tasks.loader(image, depth, batch=16), loss, optim.AdamW(net.parameters(), lr=2e-3))


@add(
    ("data", r"loss|batches|labels?|model"),
    source="https://github.com/01-ai/Yi/issues/110",
    needs=("transformers",),
)
def answers_of_yi_scored_to_the_last_pad(fault: bool) -> Training:
    """Answers of a small decoder: labels are the ids with all their padding, which is most of what is scored."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    long = torch.randint(4, 10, (768, 1))
    ids = tasks.text(vocabulary=37, length=40, count=768, following=2) + 3
    ids = torch.where(torch.arange(40) < long, ids, 0)
    labels = ids if fault else ids.masked_fill(ids == 0, -100)
    seen = (ids != 0).long()
    parts = zip(ids.split(24), seen.split(24), labels.split(24), strict=True)
    batches = [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in parts]
    net = transformers.LlamaForCausalLM(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=3e-3))
