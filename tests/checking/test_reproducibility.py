"""Reproducibility: planted faults are found in their place, and sound trainings are not accused."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import depthgauge
from depthgauge import Training
from depthgauge.checking import Answer, Status
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.questions.reproducibility import QUESTION, accumulating, mixing, repeating

WIDTH, LENGTH, CLASSES = 12, 9, 4
FAULTS = {name for name, kind in QUESTION.kinds.items() if kind.nature == "fault"}


def asked(training: Training) -> Answer:
    return depthgauge.check(training, only=["reproducibility"], budget=20).answers["reproducibility"]


def kinds(answer: Answer) -> set[str]:
    return {finding.kind for finding in answer.findings}


def rows(count: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, WIDTH, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def sequences(count: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, LENGTH, WIDTH, generator=generator)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def training(model: nn.Module, *tensors: Tensor, batch: int = 16, loss: Any = None, shuffle: bool = True) -> Training:
    generator = torch.Generator().manual_seed(0)
    batches = DataLoader(TensorDataset(*tensors), batch, shuffle=shuffle, generator=generator)
    return Training(model, batches, loss, torch.optim.SGD(model.parameters(), lr=0.01))


def plain(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), *more, nn.Linear(16, CLASSES))


class Through(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


# -- two equal runs ----------------------------------------------------------------------------------------------------


def unseeded(part: Through, x: Tensor) -> Tensor:
    del part
    seed = int.from_bytes(os.urandom(4), "big")
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def test_noise_that_no_seed_sets_is_found_in_its_layer() -> None:
    answer = asked(training(plain(Through(unseeded)), *rows()))

    assert kinds(answer) == {"unseeded"}
    assert answer.findings[0].where == ("2",)
    assert "step 0" in answer.findings[0].text


def test_dropout_and_a_generator_of_the_models_own_repeat() -> None:
    model = plain(nn.Dropout(0.3), Through(lambda part, x: x + 0.1 * torch.randn(x.shape, generator=part.own)))
    model[3].own = torch.Generator().manual_seed(3)

    answer = asked(training(model, *rows()))

    assert answer.status is Status.FINE, answer.says
    assert "draws random numbers" in answer.says
    assert "the same bits in all" in answer.says


def test_a_counter_in_the_model_repeats_and_is_put_back() -> None:
    def annealed(part: Any, x: Tensor) -> Tensor:
        part.calls += 1
        return x * (1 + 1 / part.calls)

    model = plain(Through(annealed))
    model[2].calls = 0
    answer = asked(training(model, *rows()))

    assert not kinds(answer) & FAULTS
    assert model[2].calls == 0


def test_the_order_of_a_sum_is_no_fault() -> None:
    """Rounding that differs from call to call, here by an iterator, which is not put back."""

    def sums(part: Through, x: Tensor) -> Tensor:
        return x * (1 + 1e-7 * next(part.turn))

    model = plain(Through(sums))
    model[2].turn = itertools.count()
    batches = [tuple(each[:16] for each in rows())]
    user = Training(model, batches, None, torch.optim.SGD(model.parameters(), lr=0.01))

    one, other = repeating.run(user, batches), repeating.run(user, batches)
    found = repeating.compared(one, other)

    assert found.first == repeating.Mark(0, "forward", "2")
    assert 0 < found.difference < found.rounding == math.sqrt(torch.finfo(torch.float32).eps)


def test_what_a_loss_takes_from_an_iterator_is_not_accused() -> None:
    x, y = rows()
    stream = iter(torch.randn(1000, 16, WIDTH))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0] + next(stream)), batch[1])

    answer = asked(training(plain(), x, y, loss=loss))

    assert not kinds(answer) & FAULTS
    assert "iterator" in answer.says


def test_attributes_are_put_back() -> None:
    model = plain()
    model.history, model.step, model.own = [1.0], 3, torch.Generator().manual_seed(5)
    state = model.own.get_state()
    user = training(model, *rows())

    with attributes_kept(user):
        model.history.append(2.0)
        model.step, model.new = 4, 5
        torch.rand(3, generator=model.own)

    assert (model.history, model.step, hasattr(model, "new")) == ([1.0], 3, False)
    assert torch.equal(model.own.get_state(), state)


def test_what_a_loss_and_an_optimizer_hold_is_put_back() -> None:
    class Smoothed:
        def __init__(self) -> None:
            self.mean, self.seen, self.scaler = torch.zeros(1), torch.zeros(2), torch.amp.GradScaler("cpu", 4.0)

        def __call__(self, model: nn.Module, batch: Any) -> Tensor:
            nonlocal count
            count += 1
            value = nn.functional.cross_entropy(model(batch[0]), batch[1])
            self.mean = 0.9 * self.mean + 0.1 * value.detach()
            self.seen += 1
            self.scaler.scale(value)
            self.scaler.update(8.0)
            return value

    count, smoothed = 0, Smoothed()
    model = plain()
    user = Training(model, [rows()], lambda *given: smoothed(*given) + 0 * count, training(model, *rows()).optimizer)
    mean = smoothed.mean
    depthgauge.check(user, only=("data",), budget=2)

    assert smoothed.mean is mean
    assert not smoothed.seen.any()
    assert smoothed.scaler.get_scale() == 4.0
    assert count == 0


def test_a_data_set_draws_the_same_after_a_check() -> None:
    class Noisy(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __init__(self) -> None:
            self.own, self.taken, (self.x, self.y) = np.random.default_rng(5), 0, rows()

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
            self.taken += 1
            return self.x[place] + float(self.own.standard_normal()), self.y[place]

    noisy, model = Noisy(), plain()
    user = Training(model, DataLoader(torch.utils.data.Subset(noisy, range(32)), 8), None, None)
    depthgauge.check(user, only=("data",), budget=2)

    assert noisy.taken == 0
    assert noisy.own.standard_normal() == np.random.default_rng(5).standard_normal()


def test_everything_is_left_as_it_was() -> None:
    model = plain(nn.BatchNorm1d(16), nn.Dropout(0.1))
    user = training(model, *rows())
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    state = torch.get_rng_state()

    asked(user)

    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert modes == [part.training for part in model.modules()]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert user.optimizer is not None
    assert not user.optimizer.state


# -- examples of one batch ---------------------------------------------------------------------------------------------


def reshaped(part: Through, x: Tensor) -> Tensor:
    del part
    return x.reshape(x.shape[1], x.shape[0]).t()  # where a transposition was meant


MIXERS = {
    "reshape": (Through(reshaped), ("2",)),
    "cumulative": (Through(lambda _, x: x.cumsum(0)), ("2",)),
    "softmax": (nn.Softmax(dim=0), ("2",)),
    "rolled": (Through(lambda _, x: x + 0.1 * x.roll(1, 0)), ("2",)),
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_layer_that_mixes_examples_is_named(name: str) -> None:
    part, where = MIXERS[name]
    answer = asked(training(plain(part), *rows()))

    assert "mixes_examples" in kinds(answer)
    assert answer.status is Status.BROKEN
    assert answer.findings[0].where == where


@pytest.mark.parametrize("first", [False, True])
def test_recurrence_along_the_batch_is_a_fault_and_along_time_is_none(first: bool) -> None:
    torch.manual_seed(0)
    model = Through(
        lambda part, x: part.head(part.lstm(x)[0][:, -1]),
        lstm=nn.LSTM(WIDTH, 8, batch_first=first), head=nn.Linear(8, CLASSES),
    )  # fmt: skip
    answer = asked(training(model, *sequences()))

    assert ("mixes_examples" in kinds(answer)) is not first
    assert first or answer.where == ("lstm",)
    assert first or "batch_first=True" in answer.advice


@pytest.mark.parametrize("first", [False, True])
def test_attention_along_the_batch(first: bool) -> None:
    torch.manual_seed(0)
    model = Through(
        lambda part, x: part.head(part.attention(x, x, x, need_weights=False)[0].mean(1)),
        attention=nn.MultiheadAttention(WIDTH, 2, batch_first=first), head=nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip
    answer = asked(training(model, *sequences()))

    assert ("mixes_examples" in kinds(answer)) is not first


def test_sequences_whose_first_dimension_is_time_are_not_accused() -> None:
    torch.manual_seed(0)
    tagger = Through(
        lambda part, x: part.head(part.lstm(x[:, None])[0][:, 0]),
        lstm=nn.LSTM(WIDTH, 8), head=nn.Linear(8, CLASSES),
    )  # fmt: skip
    x, y = rows(80)
    sentences = [(x[:20], y[:20]), (x[20:33], y[20:33]), (x[33:60], y[33:60])]
    user = Training(tagger, sentences, None, torch.optim.SGD(tagger.parameters(), lr=0.1))

    assert not kinds(asked(user)) & FAULTS


def test_rows_in_their_own_order_may_be_a_sequence() -> None:
    summed = Through(lambda _, x: x.cumsum(0) / 16)

    assert kinds(asked(training(plain(summed), *rows(), shuffle=False))) & {"examples_meet", *FAULTS} == {
        "examples_meet"
    }


def test_attention_between_examples_and_similarities_are_no_faults() -> None:
    between = Through(lambda _, x: x + torch.softmax(x @ x.t() / 4, -1) @ x)

    def contrastive(model: nn.Module, batch: Any) -> Tensor:
        z = functional.normalize(model(batch[0]), dim=-1)
        return functional.cross_entropy(z @ z.roll(1, -1).t() / 0.1, torch.arange(len(z)))

    assert kinds(asked(training(plain(between), *rows()))) & {"examples_meet", *FAULTS} == {"examples_meet"}
    answer = asked(training(plain(), *rows(), loss=contrastive))
    assert kinds(answer) == {"tied_examples"}
    assert answer.status is Status.FINE


@pytest.mark.parametrize(("dim", "told"), [(0, True), (1, False)])
@pytest.mark.parametrize("way", ["spread", "length"])
def test_a_normalization_by_hand_over_the_examples(way: str, dim: int, told: bool) -> None:
    def normalized(x: Tensor) -> Tensor:
        if way == "length":
            return functional.normalize(x, dim=dim)
        return (x - x.mean(dim, keepdim=True)) / (x.std(dim, keepdim=True) + 1e-5)

    through = Through(lambda part, x: normalized(part.first(x)), first=nn.Linear(16, 16))
    assert ("mixes_examples" in kinds(asked(training(plain(through), *rows())))) is told


def test_a_spread_of_the_examples_beside_them_is_meant() -> None:
    beside = Through(lambda _, x: x + x.std(0).mean())
    assert kinds(asked(training(plain(beside), *rows()))) & {"examples_meet", *FAULTS} == {"examples_meet"}


class Experts(nn.Module):
    """Experts that take no more than two examples of a batch each, the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        for number, expert in enumerate(self.experts):
            taken = (shares.argmax(-1) == number).nonzero()[:2, 0]
            x = x.index_add(0, taken, expert(x[taken]) * shares[taken, number : number + 1])
        return self.head(x)


def test_experts_that_share_a_capacity_are_no_fault() -> None:
    torch.manual_seed(0)
    answer = asked(training(Experts(), *rows()))

    assert "examples_meet" in kinds(answer)
    assert not kinds(answer) & FAULTS


def test_what_a_model_keeps_from_call_to_call_is_a_property() -> None:
    def carrying(part: Any, x: Tensor) -> Tensor:
        kept = getattr(part, "kept", None)
        part.kept = x.detach().mean(0)
        return x if kept is None else x + 0.5 * kept

    answer = asked(training(plain(Through(carrying)), *rows()))

    assert "keeps_state" in kinds(answer)
    assert not kinds(answer) & FAULTS


# -- models of next tokens ---------------------------------------------------------------------------------------------


class Language(nn.Module):
    """One layer of attention over tokens."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 20)
        self.causal = causal

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return self.head(self.layer(self.embedding(tokens), src_mask=mask))


def next_token(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())


@pytest.mark.parametrize("causal", [False, True])
def test_a_model_that_sees_the_next_token(causal: bool) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (64, 10))
    answer = asked(training(Language(causal=causal), tokens, loss=next_token))

    assert ("sees_future" in kinds(answer)) is not causal
    assert causal or answer.where[0].startswith("layer")
    assert not causal or "no output depends on a later token" in answer.says


@pytest.mark.parametrize("causal", [False, True])
def test_a_forecast_that_sees_the_next_step(causal: bool) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3)

        def forward(self, series: Tensor) -> Tensor:
            return self.conv(functional.pad(series.mT, (2, 0) if causal else (1, 1))).mT  # type: ignore[no-any-return] # a module

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(batch[0])[:, :-1], batch[0][:, 1:])

    answer = asked(training(Steps(), torch.randn(64, 10, 2).cumsum(1), loss=loss))
    assert ("sees_future" in kinds(answer)) is not causal


def test_a_model_that_fills_in_tokens_may_see_all_of_them() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (64, 10))
    masked = torch.where(torch.rand(64, 10) < 0.3, 0, tokens)

    def fill(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    assert not kinds(asked(training(Language(causal=False), masked, tokens, loss=fill))) & FAULTS


# -- parts of a batch --------------------------------------------------------------------------------------------------


def tagged(kind: str) -> Training:
    """Tokens' classes over sequences of unequal length, whose loss is a mean over tokens, examples or parts."""
    torch.manual_seed(0)
    x, lengths = torch.randn(64, LENGTH, WIDTH), torch.randint(1, LENGTH + 1, (64,))
    labels = torch.randint(CLASSES, (64, LENGTH)).masked_fill(torch.arange(LENGTH) >= lengths[:, None], -100)

    def over(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        parts = {"tokens": 1, "parts": 4, "examples": len(batch[0])}[kind]
        return sum(over(model, *each) for each in zip(*(t.chunk(parts) for t in batch), strict=True)) / parts

    return training(plain(), x, labels, loss=loss)


def test_means_of_unequal_parts_are_a_fault_and_a_mean_over_tokens_is_a_property() -> None:
    assert kinds(asked(tagged("parts"))) == {"accumulation"}
    assert kinds(asked(tagged("tokens"))) == {"weighted_mean"}
    assert kinds(asked(tagged("examples"))) == set()


def test_a_sum_and_outputs_against_all_targets() -> None:
    def summed(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def broadcast(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0])[:, :1] - batch[1].float()).square().mean()

    assert kinds(asked(training(plain(), *rows(), loss=summed))) == {"summed"}
    answer = asked(training(plain(), *rows(), loss=broadcast))
    assert (kinds(answer), answer.where) == ({"every_pair"}, ("loss",))


def test_batch_normalization_is_told_by_its_share() -> None:
    answer = asked(training(plain(nn.BatchNorm1d(16)), *rows()))

    assert (kinds(answer), answer.status) == ({"batch_norm"}, Status.FINE)
    assert 0.01 < answer.findings[0].measure.value < 1.5


def test_weights_of_parts_are_those_of_a_known_mean() -> None:
    x, y = rows(16)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def weighted(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], weight=weight)

    found = accumulating.accumulated(training(plain(), x, y, loss=weighted), (x, y), 0.0, lambda: True)

    assert found.cause == "weights"
    share = float(weight[y[:8]].sum() / weight[y].sum())
    assert found.weights == pytest.approx((share, 1 - share), abs=1e-3)


# -- what cannot be said -----------------------------------------------------------------------------------------------


def test_a_batch_without_a_common_dimension_says_so() -> None:
    x, edges = torch.randn(30, WIDTH), torch.randint(30, (2, 50))
    model = plain()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        z = model(batch[0])
        return (z[batch[1][0]] - z[batch[1][1]]).square().mean()

    user = Training(model, [(x, edges)] * 3, loss, torch.optim.SGD(model.parameters(), lr=0.1))
    answer = asked(user)

    assert answer.status is Status.FINE
    assert "share no first dimension" in answer.says


def test_a_model_of_a_fixed_set_of_rows_is_not_accused() -> None:
    torch.manual_seed(0)
    x, y = rows(32)
    adjacency = torch.softmax(torch.randn(32, 32), -1)
    model = plain(Through(lambda _, z: adjacency @ z))
    user = Training(model, [(x, y)] * 4, None, torch.optim.SGD(model.parameters(), lr=0.1))
    answer = asked(user)

    assert not kinds(answer) & FAULTS
    assert "no other number of examples" in answer.says


def test_changes_outside_of_an_examples_own_rows() -> None:
    a = torch.ones(4, 3)
    b = a.clone()
    b[1] += 1

    assert mixing.others(a, b, 4, 1) == 0
    assert mixing.others(a, b, 4, 0) == pytest.approx(1.0)
    assert mixing.others(a.reshape(12), b.reshape(12), 4, 1) == 0  # example by example
    assert mixing.others(a.t().reshape(12), b.t().reshape(12), 4, 1) == 0  # side by side


def test_without_time_it_says_what_was_not_measured() -> None:
    def slow(part: Through, x: Tensor) -> Tensor:
        del part
        torch.randn(400, 400) @ torch.randn(400, 400)
        return x

    user = training(plain(Through(slow)), *rows())
    answer = depthgauge.check(user, only=["reproducibility"], budget=1e-3).answers["reproducibility"]

    assert answer.status is Status.UNDECIDED
    assert "two equal runs" in answer.findings[0].text
    assert "no time" in answer.findings[0].text


def test_a_picture_shows_each_phase() -> None:
    answer = asked(training(plain(), *rows()))
    canvas = QUESTION.draw(answer)

    assert canvas is not None
    assert len(canvas.axes[0].patches) == len(answer.tables["equal runs"])


def test_sums_of_another_order_are_nothing_that_a_model_keeps() -> None:
    def summing(_: Any, x: Tensor) -> Tensor:  # as of atomic sums over a graph: no seed sets their order
        assert len(x) == 16
        drawn = torch.frombuffer(bytearray(os.urandom(x.numel())), dtype=torch.uint8) % 2
        return x * (1 + 2e-7 * drawn.view_as(x))

    found = kinds(asked(training(plain(Through(summing)), *rows())))
    assert "order_of_sums" in found
    assert "keeps_state" not in found
