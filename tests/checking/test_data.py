"""Data and loss: what is planted is found at its place, and a sound training is left in peace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training
from depthgauge.checking import Answer, Status, terms
from depthgauge.checking.questions.data import (
    KINDS,
    QUESTION,
    across,
    added,
    addends,
    belonging,
    by_hand,
    called,
    derivatives,
    edges,
    evaluated,
    joined,
    kept,
    labels,
    of_outputs,
    order,
    padding,
    pairing,
    parts,
    pulling,
    repeating,
    rows,
    scaled,
    sight,
    squares,
    stored,
    values,
)

CLASSES, FEATURES = 5, 12
Batches = list[tuple[Tensor, Tensor]]


def batches(count: int = 6, size: int = 32, features: int = FEATURES) -> Batches:
    torch.manual_seed(0)
    directions = torch.randn(features, CLASSES)
    inputs = [torch.randn(size, features) for _ in range(count)]
    return [(x, (x @ directions).argmax(1)) for x in inputs]


def network(*tail: nn.Module, outputs: int = CLASSES, middle: tuple[nn.Module, ...] = ()) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 32), *middle, nn.ReLU(), nn.Linear(32, outputs), *tail)


def training(model: nn.Module, taken: Any, loss: Callable[..., Tensor] | None = None, rate: float = 0.01) -> Training:
    return Training(model, taken, loss, torch.optim.Adam(model.parameters(), rate))


def asked(of: Training, **options: Any) -> Answer:
    return depthgauge.check(of, only=["data"], **options).answers["data"]


def kinds(answer: Answer) -> set[str]:
    return {finding.kind for finding in answer.findings if finding.status in {Status.BROKEN, Status.LOOK}}


def faults(answer: Answer) -> set[str]:
    return {kind for kind in kinds(answer) if QUESTION.all_kinds[kind].nature == "fault"}


def regression(loss: Callable[[Tensor, Tensor], Tensor], change: Callable[[Tensor], Tensor] = lambda y: y) -> Training:
    taken = [(x, change(x[:, :3].sum(1))) for x, _ in batches()]
    return training(network(outputs=1), taken, lambda model, batch: loss(model(batch[0]), batch[1]))


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.ones_like(x))


def with_loss(function: Callable[..., Tensor], *tail: nn.Module, **options: Any) -> Training:
    return training(network(*tail), batches(), lambda model, batch: function(model(batch[0]), batch[1], **options))


def by_example(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], model: nn.Module | None = None) -> Training:
    return training(model or network(), [change(x, y) for x, y in batches(12)])


def misaligned() -> Training:
    taken = [(x, y.roll(1)) for x, y in batches(16, features=3)]
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    return training(model, taken)


def trained(shift: int = 0) -> Training:
    model, taken = network(), batches()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(150):
        optimizer.zero_grad()
        x, y = taken[step % len(taken)]
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return training(model, [(x, (y + shift) % CLASSES) for x, y in taken])


def summed() -> Training:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    return Training(model, batches(), lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction="sum"), optimizer)


PLANTED: dict[str, tuple[Callable[[], Training], str]] = {
    "double_softmax": (lambda: training(network(nn.Softmax(1)), batches()), "loss"),
    "squashed_scores": (lambda: training(network(nn.Sigmoid()), batches()), "model"),
    "not_log_probabilities": (lambda: with_loss(functional.nll_loss), "loss"),
    "redundant_log_softmax": (lambda: training(network(nn.LogSoftmax(1)), batches()), "loss"),
    "log_of_softmax": (lambda: with_loss(lambda out, y: functional.nll_loss(out.softmax(1).log(), y)), "loss"),
    "double_sigmoid": (lambda: regression(lambda out, y: functional.binary_cross_entropy_with_logits(
        out.sigmoid(), (y > 0).float()[:, None])), "loss"),
    "one_class": (lambda: training(network(outputs=1), [(x, y * 0) for x, y in batches()]), "loss"),
    "negated_loss": (lambda: with_loss(lambda out, y: -functional.cross_entropy(out, y)), "loss"),
    "far_above_chance": (lambda: with_loss(lambda out, y: functional.cross_entropy(60 * out, y)), "model"),
    "shifted_labels": (lambda: trained(1), "batches"),
    "summed_loss": (summed, "loss"),
    "grows_with_batch": (lambda: with_loss(functional.cross_entropy, reduction="sum"), "loss"),
    "unaligned_targets": (lambda: regression(lambda out, y: (out - y).square().mean()), "loss"),
    "ignores_inputs": (lambda: training(Blind(), batches()), "model"),
    "constant_inputs": (lambda: by_example(lambda x, y: (x * 0 + 1, y)), "batches"),
    "nonfinite_inputs": (lambda: by_example(lambda x, y: (x.masked_fill(x > 2.5, math.nan), y)), "batches"),
    "nonfinite_loss": (lambda: by_example(lambda x, y: (x.masked_fill(x > 2.5, math.nan), y)), "loss"),
    "unscaled_inputs": (lambda: by_example(lambda x, y: (50 * x + 100, y)), "batches"),
    "tiny_inputs": (lambda: by_example(lambda x, y: (x / 255, y)), "batches"),
    "offset_inputs": (lambda: by_example(lambda x, y: (x + 15, y)), "batches"),
    "uneven_features": (lambda: by_example(lambda x, y: (torch.cat([x[:, 1:], x[:, :1] / 1e4], 1), y)), "batches"),
    "constant_features": (lambda: by_example(lambda x, y: (x * (torch.arange(FEATURES) > 0), y)), "batches"),
    "duplicated_features": (lambda: by_example(lambda x, y: (torch.cat([x[:, 1:], x[:, 1:2]], 1), y)), "batches"),
    "leak": (lambda: by_example(lambda x, y: (torch.cat([x[:, 1:], y[:, None].float()], 1), y)), "batches"),
    "unscaled_targets": (lambda: regression(lambda out, y: functional.mse_loss(out[:, 0], y), lambda y: 1000 + 50 * y),
                         "batches"),
    "labels_out_of_range": (lambda: regression(
        lambda out, y: functional.binary_cross_entropy_with_logits(out[:, 0], y), lambda y: y.sign()), "batches"),
    "all_ignored": (lambda: by_example(lambda x, y: (x, y * 0 - 100)), "batches"),
    "constant_targets": (lambda: by_example(lambda x, y: (x, y * 0 + 2)), "batches"),
    "first_class_missing": (lambda: by_example(lambda x, y: (x, y + 1), network(outputs=CLASSES + 1)), "batches"),
    "classes_too_many": (lambda: by_example(lambda x, y: (x, y), network(outputs=CLASSES + 2)), "model"),
    "conflicting_labels": (lambda: by_example(lambda x, y: (x.sign()[:, :1].expand(-1, FEATURES).clone(), y)),
                           "batches"),
    "misaligned": (misaligned, "batches"),
    "eval_mode": (lambda: training(network(middle=(nn.BatchNorm1d(32), nn.Dropout(0.1))).eval(), batches()), "model"),
    "heavy_dropout": (lambda: training(network(middle=(nn.Dropout(0.99),)), batches()), "1"),
    "small_norm_batch": (lambda: training(network(middle=(nn.BatchNorm1d(32),)), batches(size=2)), "1"),
    "raises": (lambda: by_example(lambda x, y: (x, y + 1)), "batches"),
    "broadcast_targets": (lambda: regression(functional.mse_loss), "loss"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a target size")  # torch says so of the planted fault
@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_found(kind: str) -> None:
    make, where = PLANTED[kind]
    answer = asked(make())
    assert kind in kinds(answer)
    finding = next(each for each in answer.findings if each.kind == kind)
    assert where in finding.where
    assert finding.advice
    assert answer.status is not Status.FINE


def test_large_inputs_are_told_where_they_saturate_all_units() -> None:
    """Outputs are then the same for all examples, and for inputs that are larger by one."""
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    taken = [(1e6 * x + 3e6, y) for x, y in batches()]
    assert "unscaled_inputs" in kinds(asked(training(model, taken)))


def test_classes_in_order_have_other_targets_some_places_on() -> None:
    """The next example has the same class, but where one class ends; those examples do not count here."""
    y = torch.arange(90) // 30
    counted = torch.arange(90) % 30 > 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0])[counted], batch[1][counted])

    model = network(outputs=3)
    assert "unaligned_targets" not in kinds(asked(training(model, [(torch.eye(FEATURES)[y], y)], loss)))


def test_every_kind_is_planted_or_has_its_own_test() -> None:
    apart = (of_outputs, called, addends, pulling, values, order, padding, pairing, belonging, parts)  # tested beside
    apart += (derivatives, evaluated, joined, stored, across, added, kept, rows, by_hand)
    apart += (scaled, edges, sight, squares, repeating)
    elsewhere = {kind for module in apart for kind in module.KINDS}
    own = {"refused", "frozen_norm", "cannot_fit", "divided_twice"}
    own |= {"washed_out", "uneven_channels", "weights_favour_frequent", "ignored_class", "two_of_many_classes"}
    own |= {"class_left_out", "unscaled_tie", "unit_weights", "refused_trials"}
    assert set(PLANTED) | own | elsewhere == set(KINDS)


def autoencoder() -> Training:
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, FEATURES))
    return training(model, batches(), lambda m, b: functional.mse_loss(m(b[0]), b[0]))


def contrastive() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        one, other = (functional.normalize(model(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=1) for _ in range(2))
        return functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))

    return training(network(), batches(), loss)


def zero_head() -> Training:
    model = network()
    for parameter in model[-1].parameters():
        nn.init.zeros_(parameter)
    return training(model, batches())


def language_model() -> Training:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 40))
    tokens = [torch.randint(40, (8, 12)) for _ in range(4)]
    return training(model, tokens, lambda m, b: functional.cross_entropy(m(b[:, :-1]).transpose(1, 2), b[:, 1:]))


def generator_of_two() -> Training:
    torch.manual_seed(3)
    judge = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1)).requires_grad_(False)
    model = nn.Linear(4, FEATURES)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(judge(m(batch)), torch.ones(len(batch), 1))

    return training(model, [torch.randn(16, 4) for _ in range(4)], loss)


def small_rate() -> Training:
    return training(network(), batches(), rate=1e-7)


def graph() -> Training:
    torch.manual_seed(4)
    near = (torch.rand(60, 60) < 0.1).float()
    model = nn.Linear(60, CLASSES)
    return training(model, [(torch.eye(60), near, torch.randint(CLASSES, (60,)))],
                    lambda m, b: functional.cross_entropy(b[1] @ m(b[0]), b[2]))  # fmt: skip


def scaled_loss() -> Training:
    return with_loss(lambda out, y: 1024 * functional.cross_entropy(out, y))


def trained_on_bytes() -> Training:
    """Inputs are large, and the model has learnt on them."""
    of = trained()
    with torch.no_grad():
        of.model[0].weight.div_(100)
    return training(of.model, [(100 * x, y) for x, y in of.batches])


def missing_values() -> Training:
    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.nan_to_num())

    return by_example(lambda x, y: (x.masked_fill(x > 1, math.nan), y), Filled())


def padded() -> Training:
    """Label 0 is padding, and does not count."""
    taken = [(x, y + (torch.arange(len(y)) > 3)) for x, y in batches(12)]
    return training(network(outputs=CLASSES + 1), [(x, y.masked_fill(torch.arange(len(y)) < 4, 0)) for x, y in taken],
                    lambda m, b: functional.cross_entropy(m(b[0]), b[1], ignore_index=0))  # fmt: skip


def word_counts() -> Training:
    """Rows of a thousand words that sum to 1, as of citation networks."""
    torch.manual_seed(6)
    counts = [(torch.rand(16, 1000) < 0.02).float() for _ in range(4)]
    model = nn.Linear(1000, CLASSES)
    return training(model, [(x / x.sum(1, keepdim=True), torch.randint(CLASSES, (16,))) for x in counts])


SOUND = (
    autoencoder, contrastive, zero_head, language_model, generator_of_two, small_rate, graph, scaled_loss, trained,
    trained_on_bytes, missing_values, padded, word_counts,
)  # fmt: skip


@pytest.mark.parametrize("make", SOUND, ids=lambda make: make.__name__)
def test_a_sound_training_is_left_in_peace(make: Callable[[], Training]) -> None:
    answer = asked(make())
    assert not faults(answer), answer.findings
    assert answer.status in {Status.FINE, Status.LOOK}


def test_the_twin_of_a_blind_model_sees_its_inputs() -> None:
    assert asked(training(network(), batches())).status is Status.FINE


def test_the_loss_at_the_start_is_held_against_ln_classes() -> None:
    model = network()
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.zero_()
    answer = asked(training(model, batches()))
    assert answer.value == pytest.approx(1, abs=1e-6)
    assert f"{math.log(CLASSES):.4g}" in answer.says


def test_a_model_without_any_way_down_cannot_fit() -> None:
    class Stuck(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # of one input
            return -gradient

    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return Stuck.apply(self.inner(x))

    answer = asked(training(Reversed(), batches()))
    assert answer.status is Status.BROKEN
    assert "cannot_fit" in kinds(answer)


def test_normalization_that_a_user_froze_is_a_property() -> None:
    model = network(middle=(nn.BatchNorm1d(32),))
    model[1].eval().requires_grad_(False)
    answer = asked(training(model, batches()))
    assert answer.status is Status.FINE
    assert [finding.kind for finding in answer.findings] == ["frozen_norm"]


def test_an_exception_is_told_with_its_line() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("speed")

    answer = asked(training(network(), batches(), loss))
    assert answer.status is Status.BROKEN
    assert f"test_data.py:{loss.__code__.co_firstlineno + 1}" in answer.says


def test_everything_is_left_as_it_was() -> None:
    subject = training(network(middle=(nn.BatchNorm1d(32), nn.Dropout(0.3))), batches())
    assert subject.optimizer is not None
    subject.value(subject.first()[0]).backward()
    subject.optimizer.step()
    kept = [each.clone() for each in subject.model.state_dict().values()]
    state = [each.clone() for group in subject.optimizer.state.values() for each in group.values()]
    gradients = [each.grad.clone() for each in subject.model.parameters() if each.grad is not None]
    draws = torch.get_rng_state()
    asked(subject)
    assert all(map(torch.equal, kept, subject.model.state_dict().values()))
    assert all(map(torch.equal, state, (e for group in subject.optimizer.state.values() for e in group.values())))
    assert all(map(torch.equal, gradients, (each.grad for each in subject.model.parameters())))
    assert torch.equal(draws, torch.get_rng_state())
    assert subject.model.training
    assert not subject.model._forward_hooks


def test_what_there_is_no_time_for_is_said() -> None:
    answer = asked(training(network(), batches()), budget=1e-4)
    assert answer.status is Status.UNDECIDED
    assert "not measured" in answer.says


def test_neighbours_agree_as_often_as_labels_that_are_drawn_by_chance() -> None:
    """Of labels that do not depend on the inputs, the error is standard normal."""
    torch.manual_seed(5)
    found = [labels.agreement(torch.randn(200, 4), torch.randint(3, (200,))) for _ in range(60)]
    errors = torch.tensor([each.errors for each in found if each is not None])
    assert abs(errors.mean()) < 4 / math.sqrt(60)
    assert errors.std() < 1.4  # the error assumes that all neighbours are mutual, the widest case


def test_the_figure_is_of_the_batch_that_was_fitted() -> None:
    figure = QUESTION.draw(asked(training(network(), batches())))
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "step"


def test_targets_are_known_also_where_a_term_keeps_its_first_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "_MOST", 10 * CLASSES)
    taken = [(y, x) for x, y in batches()]  # the targets come first: their place says nothing
    user = training(network(), taken, lambda model, batch: functional.cross_entropy(model(batch[1]), batch[0]))
    parts = {row["tensor"]: row["part"] for row in asked(user).tables["batches"].to_dict("records")}
    assert parts == {"0": "target", "1": "input"}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_scripted_module_is_asked_too() -> None:
    found = depthgauge.check(training(torch.jit.script(network()), batches()), only=["data", "learning_rate"])
    assert {answer.id: answer.status for answer in found.asked}["data"] is Status.FINE
    assert found.answers["learning_rate"].tables["stability"]["value"].iloc[0] > 0


def test_a_constant_beside_the_loss_hides_no_fit() -> None:
    def shifted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1]) - 1e4

    assert not faults(asked(training(network(), batches(), shifted)))
