"""What a loss means, told by its outputs, its parts and what its functions are given; sound losses beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import Training
from depthgauge.checking import Finding, check, observing
from depthgauge.checking.questions.data import addends, called, losses, of_outputs, outputs, passing, pulling, summing
from depthgauge.checking.questions.reproducibility import accumulating
from depthgauge.checking.subject import Clock, Subject

Loss = Callable[[Tensor, Tensor], Tensor]
WIDE, COUNT = 6, 48


def training(loss: Callable[[nn.Module, Any], Tensor], *columns: Tensor, out: int = 1, net: Any = None) -> Training:
    model = net or nn.Sequential(nn.Linear(WIDE, 24), nn.Tanh(), nn.Linear(24, out))
    taken = [tuple(each[i : i + COUNT] for each in columns) for i in range(0, len(columns[0]), COUNT)]
    return Training(model, taken, loss, torch.optim.Adam(model.parameters(), 5e-3))


def found(of: Training, *modules: Any) -> set[str]:
    subject = Subject(of, observing.look(of), Clock(30))

    def told() -> Iterator[Finding]:
        for module in modules or (of_outputs, called, summing):
            yield from module.findings(subject)

    return {each.kind for each in told()} - {"grows_with_batch", "not_measured"}


def held(loss: Loss) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: loss(model(batch[0]), batch[1])


def quantile(error: Tensor) -> Tensor:
    return torch.maximum(0.9 * error, -0.1 * error).mean()


def likelihood(out: Tensor, y: Tensor, sign: int = -1) -> Tensor:
    return (out[:, 1:] + (y - out[:, :1]).square() * (sign * out[:, 1:]).exp()).mean()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda out, y: -functional.l1_loss(out, y), {"pushed_away"}),
        (lambda out, y: (0.9 * (y - out)).mean(), {"targets_idle", "no_floor"}),
        (lambda out, y: torch.where(y > out, 0.9 * (y - out), 0.1 * (y - out)).mean(), {"no_floor"}),
        (lambda out, y: functional.mse_loss(out.relu(), y), {"out_of_reach"}),
        (lambda out, y: functional.mse_loss(out.round(), y) + 0.01 * out.square().mean(), {"cut_off_term"}),
        (lambda out, y: functional.mse_loss(out.detach(), y) + functional.l1_loss(out, y), {"cut_off_term"}),
        (lambda out, y: functional.mse_loss(out, y) / len(y), {"divided_twice"}),
        (lambda out, y: functional.mse_loss(out[:8], y[:8]), {"left_out_examples"}),
        (functional.mse_loss, set()),
        (lambda out, y: functional.huber_loss(0.1 * out + 2, y), set()),
        (lambda out, y: quantile(y - out), set()),
        (lambda out, y: 1 - functional.cosine_similarity(out.T, y.T).mean(), set()),
    ],
)  # fmt: skip
def test_of_numbers(loss: Loss, expected: set[str]) -> None:
    x = torch.randn(3 * COUNT, WIDE)
    bounded = "out_of_reach" in expected
    net = nn.Sequential(nn.Linear(WIDE, 24), nn.Tanh(), nn.Linear(24, 1), nn.ReLU()) if bounded else None
    given: Loss = functional.mse_loss if bounded else loss
    of = training(held(given), x, x.sum(1, keepdim=True), net=net)
    assert expected <= found(of) if expected else not found(of)


def test_a_likelihood_whose_exponent_lost_its_sign_has_no_floor() -> None:
    x = torch.randn(2 * COUNT, WIDE)
    y = x[:, :1] + 0.1
    assert "no_floor" in found(training(held(lambda out, y: likelihood(out, y, 1)), x, y, out=2))
    assert not found(training(held(likelihood), x, y, out=2))


def test_a_likelihood_that_lost_its_width_shrinks_away() -> None:
    x = torch.randn(2 * COUNT, WIDE)
    of = training(held(lambda out, y: ((y - out[:, :1]).square() * (-out[:, 1:]).exp()).mean()), x, x[:, :1], out=2)
    assert found(of) == {"shrunk_away"}


def focal(probability: Tensor, y: Tensor) -> Tensor:
    own = probability * y + (1 - probability) * (1 - y)
    return -((1 - own).square() * own.clamp(1e-6).log()).mean()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda out, y: focal(out.sigmoid().clamp(0.01, 0.99).sigmoid(), y), {"double_sigmoid"}),
        (lambda out, y: -(y * functional.logsigmoid(out.softmax(1))).mean(), {"double_sigmoid"}),
        (lambda out, y: -(y * (out.softmax(1) / 2).log_softmax(1)).mean(), {"double_softmax"}),
        (lambda out, y: -(y * (20 * out.softmax(1)).log_softmax(1)).mean(), set()),
        (lambda out, y: focal((8 * out.sigmoid() - 4).sigmoid(), y), set()),
        (lambda out, y: focal(out.sigmoid(), y), set()),
    ],
)
def test_of_scores_by_hand_that_are_bounded_already(loss: Loss, expected: set[str]) -> None:
    x = torch.randn(2 * COUNT, WIDE)
    of = training(held(loss), x, (x > 0).float(), out=WIDE)
    seen = observing.look(of)
    assert {each.kind for each in losses.findings(seen, passing.Passed(), of.model)} == expected


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("name", ["soft_margin_loss", "hinge_embedding_loss"])
def test_labels_without_a_sign(name: str, signs: bool) -> None:
    x = torch.randn(2 * COUNT, WIDE)
    y = (x[:, :1] > 0).float() * (2 if signs else 1) - int(signs)
    told = found(training(held(getattr(functional, name)), x, y), called)
    assert told == (set() if signs else {"labels_without_sign"})


@pytest.mark.parametrize("logs", [False, True])
def test_rates_that_are_exponentiated_again(logs: bool) -> None:
    x = torch.randn(2 * COUNT, WIDE)
    of = training(
        held(lambda out, y: functional.poisson_nll_loss(functional.softplus(out), y, logs)), x, x[:, :1].exp()
    )
    assert found(of, called) == ({"exponential_twice"} if logs else set())


@pytest.mark.parametrize(("dim", "told"), [(1, True), (2, False)])
def test_a_softmax_over_places(dim: int, told: bool) -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return -out.log_softmax(dim).gather(2, y[..., None]).mean()

    x = torch.randn(2 * COUNT, 7, WIDE)
    assert found(training(held(loss), x, x[..., :4].argmax(2), out=4)) == ({"softmax_over_places"} if told else set())


def smoothed(out: Tensor, y: Tensor, share: float) -> Tensor:
    target = functional.one_hot(y, 5) * (1 - share) + share / 5
    return -(target * out.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda out, y: -smoothed(out, y, 0), {"pushed_away"}),
        (lambda out, y: out.softmax(1).gather(1, y[:, None]).mean(), {"pushed_away"}),
        (lambda out, y: smoothed(-3 * out.square(), y, 0), set()),
        (lambda out, y: smoothed(out, y, 0.97), {"labels_hardly_count"}),
        (lambda out, y: functional.cross_entropy(out, y, label_smoothing=0.9), {"smoothed_away"}),
        (lambda out, y: smoothed(out, (y + 1) % 5, 0), {"moved_labels"}),
        (lambda out, y: (out.softmax(0) - functional.one_hot(y, 5)).square().mean(), {"softmax_over_examples"}),
        (lambda out, y: functional.mse_loss(out, y[:, None].float().expand(-1, 5)), {"numbers_for_classes"}),
        (lambda out, y: functional.kl_div(out.softmax(1), functional.one_hot(y, 5).float()), {"divergence_of_others"}),
        (lambda out, y: functional.kl_div(out.log_softmax(1), functional.one_hot(y, 5).float()), set()),
        (lambda out, y: smoothed(out, y, 0.1), set()),
        (functional.multi_margin_loss, set()),
        (lambda out, y: 20 * functional.cross_entropy(20 * out, y), set()),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:reduction")
def test_of_classes(loss: Loss, expected: set[str]) -> None:
    x = torch.randn(3 * COUNT, WIDE)
    of = training(held(loss), x, x[:, :5].argmax(1), out=5)
    assert expected <= found(of) if expected else not found(of)


def test_weights_that_favour_the_frequent_are_told_once() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], weight=batch[1].bincount(minlength=5).float() + 1e-3)

    x = torch.randn(3 * COUNT, WIDE)
    x[:, 0] += 1.5
    told = check(training(loss, x, x[:, :5].argmax(1), out=5), only=["data"]).answers["data"].findings
    assert [each.kind for each in told if "weights" in each.kind] == ["weights_favour_frequent"]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda p, y: -(y * p.log()).mean(), {"one_sided"}),
        (lambda p, y: -(y * p.log() - (1 - y) * (1 - p).log()).mean(), {"pushed_away"}),
        (lambda p, y: -(y * p.log() + (1 - y) * (1 - p).log()).mean(), set()),
    ],
)
def test_of_yes_and_no(loss: Loss, expected: set[str]) -> None:
    x = torch.randn(2 * COUNT, WIDE)
    of = training(held(lambda out, y: loss(out[:, 0].sigmoid(), y)), x, (x[:, 0] > 0).float())
    assert found(of) == expected


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.binary_cross_entropy_with_logits])
def test_several_labels_are_no_probabilities(loss: Loss) -> None:
    x = torch.randn(2 * COUNT, WIDE)
    expected = {"labels_as_probabilities"} if loss is functional.cross_entropy else set()
    assert found(training(held(loss), x, (x > 0).float(), out=WIDE)) == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_a_policy_follows_its_rewards_not_its_actions(sign: int) -> None:
    x, action = torch.randn(2 * COUNT, WIDE), torch.randint(4, (2 * COUNT,))
    reward = torch.randn(2 * COUNT) - 0.2

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told = model(batch[0]).log_softmax(1).gather(1, batch[1][:, None])[:, 0]
        return sign * (told * batch[2]).mean()

    assert found(training(loss, x, action, reward, out=4)) == ({"pushed_away"} if sign > 0 else set())


@pytest.mark.parametrize("scrambled", [True, False])
def test_classes_are_brought_to_their_place_by_a_permutation(scrambled: bool) -> None:
    x = torch.randn(32, 1, 6, 6)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[0])
        rows = out.reshape(-1, 3) if scrambled else out.movedim(1, -1).reshape(-1, 3)
        return functional.cross_entropy(rows, batch[1].reshape(-1))

    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    assert found(training(loss, x, torch.bucketize(x[:, 0], torch.tensor([-0.5, 0.5])), net=net)) == (
        {"scrambled_classes"} if scrambled else set()
    )


@pytest.mark.parametrize(("classes", "ignored"), [(7, -100), (7, 0), (12, -100), (12, 0)])
def test_padding_that_counts(classes: int, ignored: int) -> None:
    """Also where there are as many classes as places, and either dimension may be the classes'."""
    tokens = torch.where(torch.arange(12) < torch.randint(4, 9, (COUNT, 1)), torch.randint(1, 7, (COUNT, 12)), 0)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0])[:, :-1].mT, batch[0][:, 1:], ignore_index=ignored)

    net = nn.Sequential(nn.Embedding(classes, 8), nn.Linear(8, classes))
    assert ("padding_counts" in found(training(loss, tokens, net=net))) == (ignored < 0)


@pytest.mark.parametrize("classes", [7, 12])
def test_labels_below_zero_do_not_count(classes: int) -> None:
    tokens = torch.where(torch.arange(12) < torch.randint(4, 9, (COUNT, 1)), torch.randint(1, 7, (COUNT, 12)), 0)
    labels = tokens.masked_fill(tokens == 0, -100)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    net = nn.Sequential(nn.Embedding(classes, 8), nn.Linear(8, classes))
    assert "padding_counts" not in found(training(loss, tokens, labels, net=net))


def contrast(model: nn.Module, batch: Any, by: int = 0, factor: float = 5.0) -> Tensor:
    a, b = (functional.normalize(model(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=1) for _ in range(2))
    return functional.cross_entropy(factor * a @ b.T, (torch.arange(len(a)) + by) % len(a))


def triplets(model: nn.Module, batch: Any, order: tuple[int, int, int] = (0, 1, 2)) -> Tensor:
    near, far = batch[0] + 0.1 * torch.randn_like(batch[0]), batch[0].roll(5, 0)
    every = [model(each) for each in (batch[0], near, far)]
    return functional.triplet_margin_loss(*(every[place] for place in order))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (contrast, set()),
        (lambda model, batch: contrast(model, batch, by=1), {"pulls_others"}),
        (lambda model, batch: contrast(model, batch, factor=0.05), {"flat_loss"}),
        (lambda model, batch: contrast(model, batch, factor=1.0), set()),
        (triplets, set()),
        (lambda model, batch: triplets(model, batch, (0, 2, 1)), {"pulls_others"}),
        (lambda model, batch: triplets(model, batch, (2, 1, 0)), {"pulls_others"}),
    ],
)
def test_outputs_that_are_drawn_together(loss: Any, expected: set[str]) -> None:
    of = training(loss, torch.randn(2 * COUNT, WIDE), out=8)
    assert found(of, of_outputs, pulling) == expected


def test_what_a_frozen_reference_says_is_drawn_nowhere() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.before = nn.Linear(WIDE, 12), nn.Linear(WIDE, 12).requires_grad_(False)

    def loss(model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            before = model.before(batch[0] + 0.01 * torch.randn_like(batch[0])).log_softmax(1)
        gain = model.policy(batch[0]).log_softmax(1) - before
        better, worse = gain.gather(1, batch[1]).unbind(1)
        return -functional.logsigmoid(better - worse).mean()

    batches = [(torch.randn(96, WIDE), torch.rand(96, 12).argsort(1)[:, :2]) for _ in range(3)]
    assert found(Training(Pair(), batches, loss), pulling) == set()


@pytest.mark.parametrize(("dim", "expected"), [(0, {"norm_over_examples"}), (1, set())])
def test_cosines_of_rows(dim: int, expected: set[str]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, b = (functional.normalize(model(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=dim) for _ in range(2))
        return functional.cross_entropy(a @ b.T / 0.1, torch.arange(len(a)))

    assert found(training(loss, torch.randn(2 * COUNT, WIDE), out=8)) == expected


def test_correlations_of_columns_are_meant() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, b = (functional.normalize(model(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=0) for _ in range(2))
        return (a.T @ b - torch.eye(8)).square().sum()

    assert not found(training(loss, torch.randn(2 * COUNT, WIDE), out=8))


class Unit(nn.Module):
    """Embeddings of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDE, 8)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.inner(x), dim=1)


@pytest.mark.parametrize(("factor", "expected"), [(0.05, {"flat_loss"}), (5.0, set())])
def test_a_temperature_of_outputs_that_the_model_normalizes(factor: float, expected: set[str]) -> None:
    of = training(lambda model, batch: contrast(model, batch, 0, factor), torch.randn(2 * COUNT, WIDE), net=Unit())
    assert found(of) == expected


@pytest.mark.parametrize(("factor", "expected"), [(30.0, {"outweighed"}), (1e-4, set())])
def test_a_penalty_that_outweighs_the_fit(factor: float, expected: set[str]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        penalty = sum(each.square().sum() for each in model.parameters())
        return functional.mse_loss(model(batch[0]), batch[1]) + factor * penalty

    x = torch.randn(2 * COUNT, WIDE)
    assert found(training(loss, x, x.sum(1, keepdim=True)), addends) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (("mean", "sum"), {"unlike_sums"}),
        (("mean", "halved"), {"part_divided_twice"}),
        (("sum", "sum"), set()),
        (("mean", "mean"), set()),
    ],
)
def test_parts_that_are_summed_unlike_each_other(sizes: tuple[str, str], expected: set[str]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[0])
        of_size = out.square().mean() / len(out) if sizes[1] == "halved" else getattr(out.square(), sizes[1])()
        return functional.mse_loss(out, batch[1], reduction=sizes[0]) + 0.01 * of_size

    x = torch.randn(2 * COUNT, WIDE)
    assert found(training(loss, x, x.sum(1, keepdim=True)), addends) - {"outweighed"} == expected


def test_outputs_are_caught_wherever_the_loss_is_taken() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDE, 3)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            scores = self.head(x)
            return {"loss": functional.cross_entropy(scores, y), "scores": scores}

    x, y = torch.randn(COUNT, WIDE), torch.randint(3, (COUNT,))
    of = training(lambda model, batch: model(*batch)["loss"], x, y, net=Own())
    with of.untouched():
        seen = outputs.caught(of, of.first()[0])
    assert seen is not None
    loss, (gradient,) = seen.gradient([torch.zeros(COUNT, 3)])
    assert loss == pytest.approx(math.log(3), abs=1e-6)
    torch.testing.assert_close(gradient, (1 / 3 - functional.one_hot(y, 3).float()) / COUNT)
    assert "forward" not in vars(of.model.head)


def test_means_of_unequal_masked_parts_are_told_where_an_example_is_masked_altogether() -> None:
    x, mask = torch.randn(16, 9, WIDE), torch.rand(16, 9) < torch.linspace(0, 1, 16)[torch.randperm(16), None]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        errors = (model(batch[0])[..., 0] - batch[0].sum(2)).square() * batch[1]
        parts = zip(errors.split(4), batch[1].split(4), strict=True)
        return torch.stack([part.sum() / held.sum().clamp(min=1) for part, held in parts]).mean()

    of = training(loss, x, mask)
    assert not mask.any(1).all()
    assert accumulating.accumulated(of, of.first()[0], 1e-7, lambda: True).cause == "uneven"


def test_sequences_that_come_to_rest_are_not_padded() -> None:
    tokens = torch.randint(1, 7, (COUNT, 12))
    rest = torch.arange(12) >= torch.randint(4, 9, (COUNT, 1))
    tokens = torch.where(rest, torch.randint(2, (COUNT, 1)), tokens)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0])[:, :-1].mT, batch[0][:, 1:])

    net = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7))
    assert not found(training(loss, tokens, net=net))
