"""What is drawn at random: weights that were never loaded or are copies, and masks of the user's own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import Training
from depthgauge.checking import observing
from depthgauge.checking.answers import Finding
from depthgauge.checking.questions.data import by_hand
from depthgauge.checking.questions.signal import one_change, passing, tied, unloaded
from depthgauge.checking.questions.signal.drawn import is_drawn
from depthgauge.checking.questions.signal.wiring import Wiring
from depthgauge.checking.subject import Clock, Subject

IN, WIDTH, CLASSES, ROWS = 16, 24, 4, 64


def _batches(count: int = 4) -> list[Any]:
    return [(torch.randn(ROWS, IN), torch.randint(CLASSES, (ROWS,))) for _ in range(count)]


def _training(model: nn.Module, batches: list[Any] | None = None) -> Training:
    trained = [each for each in model.parameters() if each.requires_grad]
    return Training(model, batches or _batches(), None, torch.optim.Adam(trained, 1e-2))


def _subject(training: Training) -> Subject:
    return Subject(training, observing.look(training), Clock(60.0, itertools.repeat(0.0).__next__))


def _wired(training: Training) -> Wiring:
    passed = passing.Passed()
    with training.untouched():
        passing.go(training, training.first(), passed, others={})
    return Wiring(training, passed, None, {}, training.first()[0])


def _where(found: Any) -> dict[str, Finding]:
    return {each.kind: each for each in found}


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw", [nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.trunc_normal_, nn.init.orthogonal_]
)
def test_what_an_initializer_draws_is_told_from_what_has_a_part_of_rank_one(draw: Callable[[Tensor], Tensor]) -> None:
    """An outer product of a third of the size is what steps leave."""
    weight = draw(torch.empty(32, 48))
    learnt = torch.outer(torch.randn(32), torch.randn(48))
    assert is_drawn(weight)
    assert not is_drawn(weight + weight.std() * learnt / 3)
    assert not is_drawn(weight * torch.linspace(0.5, 2, 32)[:, None])
    assert not is_drawn(torch.zeros(32, 48))


def _body() -> nn.Sequential:
    layers = [nn.Linear(IN, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
    return nn.Sequential(*(part for each in layers for part in (each, nn.LayerNorm(WIDTH), nn.ReLU())))


def _learn(body: nn.Module, but: str = "none") -> None:
    """Stand for steps: an outer product in each weight, and other scales and shifts."""
    with torch.no_grad():
        for name, each in body.named_parameters():
            if name.partition(".")[0] not in but:
                each.add_(
                    torch.outer(*map(torch.randn, each.shape)) if each.dim() > 1 else torch.randn_like(each), alpha=0.2
                )


@pytest.mark.parametrize(("learnt", "found"), [(None, ("0", "0.0", "0.3", "0.6")), ("none", None), ("67", ("0.6",))])
def test_a_frozen_part_that_was_never_loaded_is_found(learnt: str | None, found: tuple[str, ...] | None) -> None:
    """All of it, or what a state without its last layer leaves out; one that has learnt is let pass."""
    body = _body()
    if learnt is not None:
        _learn(body, learnt)
    model = nn.Sequential(body.requires_grad_(False), nn.Linear(WIDTH, CLASSES))
    told = _where(unloaded.findings(_wired(_training(model)))).get("never_loaded")
    assert (told and told.where) == found


def test_a_frozen_part_with_weights_that_are_computed_is_let_pass() -> None:
    """A parametrized layer has no weight of its own."""
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(IN, IN)) for _ in range(4)]
    model = nn.Sequential(nn.Sequential(*layers).requires_grad_(False), nn.Linear(IN, CLASSES))
    assert not list(unloaded.findings(_wired(_training(model))))


class _Predictor(nn.Module):
    """Random network distillation: a frozen network as drawn gives the targets, and no layer gets what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn, self.told = _body().requires_grad_(False), _body()

    def forward(self, x: Tensor) -> Tensor:
        return functional.mse_loss(self.told(x), self.drawn(x))


@pytest.mark.parametrize("kind", ["projection", "targets", "behind"])
def test_a_part_that_is_drawn_on_purpose_is_let_pass(kind: str) -> None:
    """A random projection, targets of a network as drawn, and a judge behind what trains."""
    if kind == "targets":
        model: nn.Module = _Predictor()
        training = Training(model, _batches(), lambda m, b: m(b[0]), torch.optim.Adam(model.told.parameters()))  # type: ignore[union-attr, arg-type] # a _Predictor
    elif kind == "behind":
        model = nn.Sequential(nn.Linear(IN, IN), _body().requires_grad_(False), nn.Flatten())
        training = _training(model)
    else:
        model = nn.Sequential(nn.Linear(IN, 99).requires_grad_(False), nn.Tanh(), nn.Linear(99, CLASSES))
        training = _training(model)
    assert not list(unloaded.findings(_wired(training)))


class _Sides(nn.Module):
    """Words of one table on both sides; `kind` says how the second came about."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.read, self.write = nn.Embedding(20, 8), nn.Embedding(21 if kind == "rows" else 20, 8)
        with torch.no_grad():
            if kind in {"copy", "scaled"}:
                self.write.weight.copy_(self.read.weight * (1 if kind == "copy" else 0.25))
            elif kind == "rows":
                self.write.weight[1:] = self.read.weight
            elif kind == "one":
                self.write = self.read
            elif kind == "learnt":
                self.read.weight += torch.outer(torch.randn(20), torch.randn(8))
                self.write.weight.copy_(self.read.weight)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.read(ids[:, 0]) * self.write(ids[:, 1]))


@pytest.mark.parametrize(
    ("kind", "found"),
    [("copy", True), ("scaled", True), ("rows", True), ("one", False), ("apart", False), ("learnt", False)],
)
def test_two_tables_of_the_same_new_numbers_are_found(kind: str, found: bool) -> None:
    """Two that begin from one that has learnt may be meant to part."""
    batches = [(torch.randint(20, (ROWS, 2)), torch.randint(20, (ROWS,))) for _ in range(4)]
    told = list(tied.findings(_wired(_training(_Sides(kind), batches))))
    assert [each.where[:2] for each in told] == [("read.weight", "write.weight")] * found


# -- masks -------------------------------------------------------------------------------------------------------------


def _bernoulli(x: Tensor, kept: float) -> Tensor:
    return x * x.new_empty(len(x), 1).bernoulli_(kept).div_(kept)


def _floored(x: Tensor, kept: float) -> Tensor:
    return x.div(kept) * (kept + torch.rand(len(x), 1)).floor_()


def _where_drawn(x: Tensor, kept: float) -> Tensor:
    return torch.where(torch.rand_like(x) < kept, x / kept, 0.0)


def _set(x: Tensor, kept: float) -> Tensor:
    x = x.clone()
    x[torch.rand_like(x) > kept] = 0
    return x / kept


def _filled(x: Tensor, kept: float) -> Tensor:
    return x.masked_fill(torch.rand(x.shape) > kept, 0) / kept


def _by_the_dropped(x: Tensor, kept: float) -> Tensor:
    return x * (torch.rand_like(x) < kept) / (1 - kept)


def _times_kept(x: Tensor, kept: float) -> Tensor:
    return x * (torch.rand_like(x) < kept) * kept


def _called(x: Tensor, kept: float) -> Tensor:
    return x if random.random() < kept else 0 * x


def _rare_noise(x: Tensor, kept: float) -> Tensor:
    return x + torch.randn_like(x) * (torch.rand_like(x) < kept)


class _Branches(nn.Module):
    """Three branches that are dropped by a function of the user's own in training mode; or not called at all."""

    def __init__(self, drop: Callable[[Tensor, float], Tensor], kept: float) -> None:
        super().__init__()
        self.drop, self.kept = drop, kept
        self.branches = nn.ModuleList(nn.Linear(IN, IN) for _ in range(3))
        self.head = nn.Linear(IN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            if self.training and self.drop is _called and random.random() > self.kept:
                continue
            told = branch(x)
            x = x + (self.drop(told, self.kept) if self.training and self.drop is not _called else told)
        return self.head(x)


@pytest.mark.parametrize(
    ("drop", "kept", "found"),
    [
        *((drop, kept, {"nearly_all_dropped"} if kept < 0.5 else set())
          for drop in (_bernoulli, _floored, _where_drawn, _set, _filled, _called) for kept in (0.05, 0.9)),
        (_by_the_dropped, 0.9, {"factor_of_the_dropped"}), (_times_kept, 0.5, {"factor_of_the_dropped"}),
        (_times_kept, 0.95, set()), (_rare_noise, 0.05, set()),
    ],
)  # fmt: skip
def test_a_mask_of_ones_own_that_drops_nearly_all_is_found(
    drop: Callable[[Tensor, float], Tensor], kept: float, found: set[str]
) -> None:
    """However it is laid; and so is one whose factor is not one over the kept share."""
    random.seed(1)
    assert set(_where(by_hand.findings(_subject(_training(_Branches(drop, kept)))))) == found


class _OneOfMany(nn.Module):
    """One of ten layers is drawn a pass, and evaluation takes the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ModuleList(nn.Linear(IN, CLASSES) for _ in range(10))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.many[random.randrange(10)](x)  # type: ignore[no-any-return] # torch's modules return anything
        return torch.stack([each(x) for each in self.many]).mean(0)


def test_one_drawn_of_many_is_no_dropping() -> None:
    """Each is called a tenth of the time, and some one always."""
    random.seed(1)
    assert not list(by_hand.findings(_subject(_training(_OneOfMany()))))


def test_a_rate_that_was_to_be_kept_is_turned_round_and_put_back() -> None:
    """With a tenth dropped, tried, the loss falls four times as far; with a tenth dropped, nothing is tried."""
    centres = 2 * torch.randn(CLASSES, IN)
    batches = [(centres[y] + torch.randn(ROWS, IN), y) for y in torch.randint(CLASSES, (8, ROWS))]
    for rate, found in ((0.9, {"dropped_for_kept"}), (0.1, set())):
        drops = [nn.Dropout(rate) for _ in range(3)]
        layers = [part for each in drops for part in (nn.Linear(IN, IN), nn.ReLU(), each)]
        model = nn.Sequential(*layers, nn.Linear(IN, CLASSES))
        assert set(_where(one_change.findings(_subject(_training(model, batches))))) == found
        assert [each.p for each in drops] == [rate] * 3
