"""Trainings as users have them, some of which are another training on several ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from depthgauge import Training, parallel
from depthgauge.foreign import describe_error
from depthgauge.seeding import Purpose, seed_globals


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classes(count: int, of: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(of, (count,), generator=torch.Generator().manual_seed(seed))


def pairs(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(drawn(size, 6, seed=place), classes(size, seed=100 + place)) for place, size in enumerate(sizes)]


def net(*between: nn.Module, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), *between, nn.ReLU(), nn.Linear(width, 3))


# -- sound ones --------------------------------------------------------------------------------------------------------


def plain() -> Training:
    return Training(net(), pairs(16, 16))


def layer_norm() -> Training:
    return Training(net(nn.LayerNorm(8)), pairs(16), optimizer=None)


def convolutional() -> Training:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
    return Training(model, [(drawn(8, 1, 6, 6), classes(8))])


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.out = nn.Linear(8, 20)
        self.temperature = 2.0

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.layer(self.embedding(tokens))) / self.temperature


def tokens(count: int = 8, length: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(20, (count, length), generator=torch.Generator().manual_seed(seed))


def next_token(model: nn.Module, batch: Tensor) -> Tensor:
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def attention() -> Training:
    return Training(Attention(), [tokens()], next_token)


def of_attributes() -> Training:
    """A loss that reads the model's own attributes."""
    model = Attention()
    return Training(model, [tokens()], lambda model, batch: next_token(model, batch) * model.temperature)


def unused() -> Training:
    """A parameter without a gradient."""
    model = net()
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    return Training(model, pairs(16))


def autocast() -> Training:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return functional.cross_entropy(model(batch[0]).float(), batch[1])

    return Training(net(), pairs(16), loss)


def half() -> Training:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]).float(), batch[1])

    return Training(net().bfloat16(), [(x.bfloat16(), y) for x, y in pairs(16)], loss)


def double() -> Training:
    return Training(net().double(), [(x.double(), y) for x, y in pairs(16)])


def weighted_classes() -> Training:
    """Weights of classes in a closure keep it out of float64."""
    scale = torch.tensor([1.0, 2.0, 0.5])
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))

    def loss(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = model[0](batch[0]) @ weight
        scores = model[2](functional.relu(hidden)) * scale
        return functional.cross_entropy(scores, batch[1])

    return Training(nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 3)), pairs(16), loss)


def penalized() -> Training:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1]) + 0.1 * sum(
            p.square().sum() for p in model.parameters()
        )

    return Training(net(), pairs(16), loss)


# -- others ------------------------------------------------------------------------------------------------------------


def batch_norm() -> Training:
    return Training(net(nn.BatchNorm1d(8)), pairs(16))


def batch_norm_two() -> Training:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return Training(model, [(drawn(4, 1, 6, 6), classes(4))])


def batch_norm_function() -> Training:
    def loss(model: nn.Sequential, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = functional.batch_norm(model[0](batch[0]), None, None, training=True)
        return functional.cross_entropy(model[2](functional.relu(hidden)), batch[1])

    return Training(net(), pairs(16), loss)


def batch_norm_dropout() -> Training:
    return Training(net(nn.BatchNorm1d(8), nn.Dropout(0.5)), pairs(16))


def batch_norm_evaluated() -> Training:
    model = net(nn.BatchNorm1d(8))
    model[1].eval()
    return Training(model, pairs(16))


def batch_norm_synchronized() -> Training:
    model = net(nn.BatchNorm1d(8))
    parallel.SyncBatchNorm.convert(model)
    return Training(model, pairs(16))


def batch_norm_sum() -> Training:
    return Training(net(nn.BatchNorm1d(8)), pairs(16), nn_sum)


def nn_sum(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def summed() -> Training:
    return Training(net(), pairs(16), nn_sum)


def summed_ragged() -> Training:
    return Training(net(), pairs(16, 7), nn_sum)


def summed_squares() -> Training:
    return Training(
        nn.Linear(6, 1), [{"x": drawn(10, 6), "y": drawn(10, 1, seed=3)}],
        lambda model, batch: (model(batch["x"]) - batch["y"]).square().sum(),
    )  # fmt: skip


def summed_dropout() -> Training:
    return Training(net(nn.Dropout(0.3)), pairs(16), nn_sum)


def lengths(*each: int) -> dict[str, Tensor]:
    ids = tokens(len(each), max(each) + 1)
    mask = torch.arange(max(each) + 1) < torch.tensor(each)[:, None] + 1
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.where(mask, ids, -100)}


def token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    scores = model(batch["input_ids"][:, :-1])
    return functional.cross_entropy(scores.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def token_mean() -> Training:
    return Training(Attention(), [lengths(9, 7, 8, 9, 2, 3, 1, 4)], token_loss)


def token_mean_masked() -> Training:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"][:, 1:].bool()
        each = functional.cross_entropy(
            model(batch["input_ids"][:, :-1]).transpose(1, 2), batch["input_ids"][:, 1:], reduction="none"
        )
        return (each * mask).sum() / mask.sum()

    return Training(Attention(), [lengths(9, 9, 9, 3, 2, 1)], loss)


def token_mean_equal() -> Training:
    return Training(Attention(), [lengths(5, 3, 5, 3)], token_loss)


def token_none() -> Training:
    """One shard without a token."""
    batch = lengths(4, 5, 4, 5)
    batch["labels"][2:] = -100
    return Training(Attention(), [batch], token_loss)


def ragged() -> Training:
    return Training(net(), pairs(16, 16, 7))


def ragged_loader() -> Training:
    x, y = drawn(45, 6), classes(45)
    return Training(net(), DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))


def ragged_one() -> Training:
    return Training(net(), pairs(16, 1))


def ragged_first() -> Training:
    return Training(net(), pairs(5))


def even_loader() -> Training:
    x, y = drawn(40, 6), classes(40)
    return Training(net(), DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))


def dropout() -> Training:
    return Training(net(nn.Dropout(0.3)), pairs(16))


def dropout_attention() -> Training:
    return Training(Attention(0.2), [tokens()], next_token)


def noisy() -> Training:
    return Training(
        net(),
        pairs(16),
        lambda model, batch: functional.cross_entropy(model(batch[0] + torch.randn_like(batch[0])), batch[1]),
    )


def own_generator() -> Training:
    generator = torch.Generator().manual_seed(3)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0] + torch.randn(batch[0].shape, generator=generator)), batch[1])

    return Training(net(), pairs(16), loss)


def contrastive() -> Training:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = functional.normalize(model(batch[0]), dim=1)
        return functional.cross_entropy(
            hidden @ hidden.T / 0.1 - 1e4 * torch.eye(len(hidden)), torch.arange(len(hidden)) ^ 1
        )

    return Training(net(), pairs(16), loss)


def root() -> Training:
    return Training(
        net(),
        [(drawn(16, 6), drawn(16, 3, seed=2))],
        lambda model, batch: (model(batch[0]) - batch[1]).square().mean().sqrt(),
    )


def zero() -> Training:
    return Training(net(), pairs(16), lambda model, batch: 0.0 * model(batch[0]).sum())


def not_finite() -> Training:
    return Training(net(), pairs(16), lambda model, batch: model(batch[0]).sum() * float("nan"))


class Counting(nn.Module):
    """A buffer that is of the batch, and does not matter to the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().mean(0)
        return self.body(x)


def counting() -> Training:
    return Training(Counting(), pairs(16))


def single() -> Training:
    return Training(net(), pairs(1))


def batch_norm_single() -> Training:
    """One example a rank, which batch normalization refuses."""
    return Training(net(nn.BatchNorm1d(8)), pairs(2))


def large() -> Training:
    """More examples than a comparison should load."""
    x, y = drawn(100_000, 6), classes(100_000)

    class Slow(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            assert index < 128 or index >= 99_968, "loaded for nothing"
            return super().__getitem__(index)

    return Training(net(), DataLoader(Slow(x, y), batch_size=64))


class Graphs:
    """A batch of graphs as PyTorch Geometric has them: nodes and edges of all graphs in one."""

    def __init__(self, graphs: list[tuple[Tensor, Tensor]]) -> None:
        self.x = torch.cat([x for x, _ in graphs])
        self.y = torch.stack([y for _, y in graphs])
        self.batch = torch.repeat_interleave(torch.tensor([len(x) for x, _ in graphs]))
        self.num_graphs = len(graphs)

    def to_data_list(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.x[self.batch == number], self.y[number]) for number in range(self.num_graphs)]

    @classmethod
    def from_data_list(cls, graphs: list[tuple[Tensor, Tensor]]) -> Graphs:
        return cls(graphs)

    def clone(self) -> Graphs:
        return copy(self)

    def apply(self, change: Callable[[Tensor], Tensor]) -> Graphs:
        self.x, self.y, self.batch = change(self.x), change(self.y), change(self.batch)
        return self


def graphs() -> Training:
    batch = Graphs([(drawn(3 + number % 3, 6, seed=number), classes(1, seed=number)[0]) for number in range(8)])

    def loss(model: nn.Module, batch: Graphs) -> Tensor:
        pooled = batch.x.new_zeros(batch.num_graphs, 6).index_add(0, batch.batch, batch.x)
        return functional.cross_entropy(model(pooled), batch.y)

    return Training(net(), [batch], loss)


def few_parameters() -> Training:
    """A mean over what `mask` has, and three parameters."""
    mask = (drawn(8, 4) > 0).float()
    mask[4:] = 1
    batch = {"x": drawn(8, 4, 2), "y": drawn(8, 4, seed=5), "mask": mask}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        errors = (model(batch["x"])[..., 0] - batch["y"]).square()
        return (errors * batch["mask"]).sum() / batch["mask"].sum()

    return Training(nn.Linear(2, 1), [batch], loss)


def sparse() -> Training:
    """Gradients of an embedding as sparse tensors."""
    model = nn.Sequential(nn.Embedding(30, 4, sparse=True), nn.Flatten(), nn.Linear(20, 3))
    return Training(model, [(tokens(8), classes(8))])


def lazy() -> Training:
    return Training(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3)), pairs(16))


def module_of_loss() -> Training:
    """A loss that is a module with a parameter of its own."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return functional.cross_entropy(model(batch[0]) * self.scale, batch[1])

    return Training(net(), pairs(16), Scaled())


def of_experts() -> Training:
    """An expert that one shard alone uses."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

        def forward(self, x: Tensor, which: Tensor) -> Tensor:
            scores = x.new_zeros(len(x), 3)
            for number, expert in enumerate(self.experts):
                if (chosen := which == number).any():
                    scores = scores.index_put((chosen.nonzero()[:, 0],), expert(x[chosen]))
            return scores

    which = torch.tensor([0] * 8 + [0, 1] * 4)
    batch = (drawn(16, 6), which, classes(16))
    return Training(Experts(), [batch], lambda model, b: functional.cross_entropy(model(b[0], b[1]), b[2]))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)[0][-1])


def time_first(examples: int = 9) -> Training:
    """Examples along the second dimension of one tensor."""
    return Training(Recurrent(), [(drawn(4, examples, 6), classes(examples))])


def along_examples(batch: tuple[Tensor, Tensor], parts: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(batch[0].tensor_split(parts, 1), batch[1].tensor_split(parts), strict=True))


def wrapped() -> Training:
    """A module that DDP wraps already."""
    return Training(nn.parallel.DistributedDataParallel(net()), pairs(16))


# -- in the ranks ------------------------------------------------------------------------------------------------------


# -- where formats, containers and state mislead -----------------------------------------------------------------------


class Bfloat16Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        coarse = functional.linear(x.bfloat16(), self.first.weight.bfloat16(), self.first.bias.bfloat16())
        return self.last(functional.relu(coarse).to(self.last.weight.dtype))


def bfloat16_inside() -> Training:
    return Training(Bfloat16Inside(), pairs(256))


def bfloat16_inside_ragged() -> Training:
    return Training(Bfloat16Inside(), pairs(31))


def autocast_token_mean() -> Training:
    """Of 6 and 8 counted examples a rank, in 400 and more: less than bfloat16 rounds."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return functional.cross_entropy(model(batch[0]), batch[1], ignore_index=-100)

    ((x, y),) = pairs(128)
    y[:1] = -100
    return Training(net(), [(x, y)], loss)


def texts() -> Training:
    """Texts in a tuple, and classes in an array, as loaders leave them."""

    def loss(model: nn.Module, batch: tuple[Tensor, tuple[str, ...], object]) -> Tensor:
        x, said, y = batch
        assert len(said) == len(x)
        return functional.cross_entropy(model(x), torch.as_tensor(y))

    ((x, y),) = pairs(16)
    return Training(net(), [(x, tuple("abcdefghijklmnop"), y.numpy())], loss)


def ragged_generator() -> Training:
    return Training(net(), (pair for pair in pairs(16, 16, 16, 7)))


def batch_norm_alone() -> Training:
    return Training(nn.BatchNorm1d(6), [drawn(16, 6)], lambda model, x: model(x).pow(3).mean())


def batch_norm_token_mean() -> Training:
    ((x, y),) = pairs(16)
    y[:5] = -100
    return Training(net(nn.BatchNorm1d(8)), [(x, y)])


def spectral() -> Training:
    return Training(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 3)), pairs(16))


def in_turn(group: parallel.Group, jobs: Sequence[tuple[str, int]]) -> dict[tuple[str, int], parallel.Same | str]:
    found: dict[tuple[str, int], parallel.Same | str] = {}
    for name, accumulate in jobs:
        seed_globals(0, Purpose.MODULES)
        try:
            found[name, accumulate] = parallel.compare(group, globals()[name](), accumulate)
        except Exception as error:  # noqa: BLE001 - the tests read what it says
            found[name, accumulate] = describe_error(error)
    return found
