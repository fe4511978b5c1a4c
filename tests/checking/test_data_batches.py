"""Batches: what is told of labels in another order, of padding, of masks, and of numbers that were lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

import depthgauge
from depthgauge import Training
from depthgauge.checking.questions.data import dependence


def kinds(training: Training) -> set[str]:
    """What the question about the data finds."""
    return {each.kind for each in depthgauge.check(training, only=["data"]).answers["data"].findings}


def cut(*tensors: Tensor, size: int = 32) -> list[tuple[Tensor, ...]]:
    return list(zip(*(each.split(size) for each in tensors), strict=True))


def perceptron(features: int, outputs: int, *middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 24), nn.ReLU(), *middle, nn.Linear(24, outputs))


def trained(model: nn.Module, batches: Any, loss: Any = None) -> Training:
    return Training(model, batches, loss, optim.Adam(model.parameters(), 3e-3))


def table(examples: int = 512, classes: int = 4) -> tuple[Tensor, Tensor]:
    x = torch.randn(examples, 8)
    return x, (x @ torch.randn(8, classes)).argmax(1)


# -- do targets belong to their inputs? --------------------------------------------------------------------------------


def waves(y: Tensor) -> Tensor:
    times = torch.arange(24) / 24
    return (6.28 * ((1 + y)[:, None] * times + torch.rand(len(y), 1))).sin()


@pytest.mark.parametrize("kind", ["linear", "phases", "neighbours", "words", "sentences"])
def test_dependence_is_found_and_not_where_there_is_none(kind: str) -> None:
    y = torch.randint(3, (400,))
    noise = torch.randint(9, 40, (400, 12))
    inputs = {
        "linear": lambda: functional.one_hot(y, 6) + torch.randn(400, 6),
        "phases": lambda: waves(y)[..., None],
        "neighbours": lambda: torch.randn(6, 5)[y + 3 * torch.randint(2, (400,))] + 0.4 * torch.randn(400, 5),
        "words": lambda: torch.where(torch.rand(400, 12) < 0.3, y[:, None], noise),
        "sentences": lambda: noise.scatter(1, torch.randint(12, (400, 1)), y[:, None]),
    }[kind]()
    assert dependence.chance([inputs], y) < dependence.LEVEL
    assert dependence.chance([inputs], y[torch.randperm(400)]) > dependence.LEVEL


def test_a_dependence_that_is_none_is_found_as_rarely_as_stated() -> None:
    found = [dependence.chance([torch.randn(60, 3)], torch.randint(2, (60,))) < 0.1 for _ in range(60)]
    assert sum(found) <= 14  # of 60 at 0.1: 14 or more with probability 0.002


def test_a_constant_depends_on_nothing() -> None:
    assert not dependence.chance([torch.randn(50, 2)], torch.ones(50, dtype=torch.int64)) <= 1


@pytest.mark.parametrize("apart", [True, False])
def test_labels_in_another_order_than_the_inputs(apart: bool) -> None:
    x, y = table()
    told = kinds(trained(perceptron(8, 4), cut(x, y[torch.randperm(512)] if apart else y)))
    assert ("independent_targets" in told) is apart


@pytest.mark.parametrize("seed", [0, 4, 5])
def test_noise_that_the_model_is_to_tell_is_no_label_of_others(seed: int) -> None:
    torch.manual_seed(seed)  # of these a model learnt some by heart
    x, noise = torch.randn(512, 8), torch.randn(512, 8)
    training = trained(
        perceptron(8, 8), cut(x, noise), lambda model, batch: functional.mse_loss(model(sum(batch)), batch[1])
    )
    assert "independent_targets" not in kinds(training)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_belongs_to_no_input(dtype: torch.dtype) -> None:
    """And what is learnt of masked numbers is no mask's: of half of such trainings it was said to be."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, held = batch
        return ((model(rows) - rows).square() * held).sum() / held.sum().clamp(min=1)

    told = set[str]()
    for seed in range(4):
        torch.manual_seed(seed)
        held = torch.rand(512, 8) < torch.rand(512, 1) ** 2
        told |= kinds(trained(perceptron(8, 8), cut(torch.randn(512, 8), held.to(dtype)), loss))
    assert "independent_targets" not in told


@pytest.mark.parametrize("squares", [True, False])
def test_flags_in_another_order_than_the_inputs(squares: bool) -> None:
    x, _ = table()
    flags = (x @ torch.randn(8, 3) > 0).float()[torch.randperm(512)]
    score = functional.mse_loss if squares else functional.binary_cross_entropy_with_logits
    training = trained(perceptron(8, 3), cut(x, flags), lambda model, batch: score(model(batch[0]), batch[1]))
    assert "independent_targets" in kinds(training)


@pytest.mark.parametrize("apart", [True, False])
def test_a_loss_that_shuffles_one_of_both(apart: bool) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        order = torch.randperm(len(batch[0]))
        return functional.cross_entropy(model(batch[0][order]), batch[1] if apart else batch[1][order])

    assert ("held_against_others" in kinds(trained(perceptron(8, 4), cut(*table()), loss))) is apart


def test_a_loss_over_what_all_examples_share_holds_each_against_its_own() -> None:
    def dice(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0]).sigmoid()
        return 1 - 2 * (scores * batch[1]).sum() / (scores + batch[1]).sum()

    x, y = table()
    assert "held_against_others" not in kinds(trained(perceptron(8, 4), cut(x, functional.one_hot(y, 4).float()), dice))


# -- order and modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_examples_in_the_order_of_their_targets(classes: bool, ordered: bool) -> None:
    x, y = table()
    goal = y if classes else x[:, :1].sin()
    order = goal.reshape(-1).argsort(stable=True) if ordered else torch.arange(512)
    loss = None if classes else lambda model, batch: functional.mse_loss(model(batch["x"]), batch["goal"])
    batches = cut(x[order], goal[order])
    held = batches if classes else [{"x": one, "goal": two} for one, two in batches]
    assert ("sorted" in kinds(trained(perceptron(8, 4 if classes else 1), held, loss))) is ordered


def test_an_index_that_stays_in_a_part_of_the_data() -> None:
    class Stuck(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        x, y = table()

        def __len__(self) -> int:
            return 512

        def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
            return self.x[place % 16], self.y[place % 16]

    loader = torch.utils.data.DataLoader(Stuck(), 32, shuffle=True)
    assert "repeated_examples" in kinds(trained(perceptron(8, 4), loader))


@pytest.mark.parametrize(("first", "back", "told"), [(True, False, True), (False, False, True), (True, True, False)])
def test_a_loss_that_calls_or_leaves_the_model_in_evaluation_mode(first: bool, back: bool, told: bool) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        def look() -> None:
            model.eval()
            with torch.no_grad():
                model(batch[0])
            model.train(back)

        if first:
            look()
        value = functional.cross_entropy(model(batch[0]), batch[1])
        if not first:
            look()
        return value

    assert ("eval_mode" in kinds(trained(perceptron(8, 4, nn.Dropout(0.2)), cut(*table()), loss))) is told


# -- padding -----------------------------------------------------------------------------------------------------------


class Next(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.rnn(self.embed(tokens))[0])
        return scores


def following(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())


def sequences() -> tuple[Tensor, Tensor]:
    real = torch.arange(12) < torch.randint(3, 12, (128, 1))
    return torch.where(real, torch.randint(1, 20, (128, 12)), 0), real


@pytest.mark.parametrize(
    ("scored", "told"),
    [("all", {"padding_scored"}), ("padding", {"only_padding_scored"}), ("real", set()), ("ignored", set())],
)
def test_what_the_loss_scores_of_padded_sequences(scored: str, told: set[str]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        tokens, real = batch
        each = functional.cross_entropy(model(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        counted = {"all": real | ~real, "padding": ~real, "real": real, "ignored": tokens != 0}[scored][:, 1:]
        return (each * counted).sum() / counted.sum()

    found = kinds(trained(Next(), cut(*sequences()), loss))
    assert found & {"padding_scored", "only_padding_scored"} == told


@pytest.mark.parametrize(("used", "told"), [("as it is", False), ("turned", True), ("not", True)])
def test_a_mask_that_is_turned_or_not_used(used: str, told: bool) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 2)

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            weights = {"as it is": mask, "turned": ~mask, "not": mask | ~mask}[used].float()[..., None]
            scores: Tensor = self.head((self.embed(tokens) * weights).sum(1) / weights.sum(1).clamp(min=1))
            return scores

    tokens, real = sequences()
    batches = cut(tokens, real, (tokens[:, 0] > 9).long())
    training = trained(Mean(), batches, lambda model, batch: functional.cross_entropy(model(*batch[:2]), batch[2]))
    assert ("mask_turned" in kinds(training)) is told


@pytest.mark.parametrize("shifted", [True, False])
def test_a_causal_model_that_is_to_copy(shifted: bool) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores, goal = model(batch[0]), batch[0]
        scores, goal = (scores[:, :-1], goal[:, 1:]) if shifted else (scores, goal)
        return functional.cross_entropy(scores.flatten(0, 1), goal.flatten())

    tokens = torch.randint(20, (128, 12))
    assert ("unshifted_targets" in kinds(trained(Next(), cut(tokens), loss))) is not shifted


class Steps(nn.Module):
    """A forecast of a series by convolutions, whose last step sees the ones before it, or the one behind it, too."""

    def __init__(self, behind: int = 0) -> None:
        super().__init__()
        self.behind, self.conv = behind, nn.Conv1d(2, 2, 3)

    def forward(self, series: Tensor) -> Tensor:
        padded = functional.pad(series.mT, (2 - self.behind, self.behind))
        return self.conv(padded).mT  # type: ignore[no-any-return] # a module


@pytest.mark.parametrize(
    ("loss", "behind", "told"),
    [
        (functional.mse_loss, 0, True),
        (lambda out, x: functional.mse_loss(out[:, :-1], x[:, 1:]), 0, False),
        (functional.mse_loss, 1, False),
        (lambda out, x: functional.mse_loss(out + 0.1 * torch.randn_like(out), x) + out.square().mean(), 0, False),
    ],
)
def test_a_forecast_of_the_very_step_that_is_seen(loss: Any, behind: int, told: bool) -> None:
    series = torch.randn(64, 12, 2).cumsum(1)
    training = trained(Steps(behind), cut(series), lambda model, batch: loss(model(batch[0]), batch[0]))
    assert ("unshifted_targets" in kinds(training)) is told


@pytest.mark.parametrize("shifted", [True, False])
def test_a_decoder_that_is_given_what_it_is_to_say(shifted: bool) -> None:
    class Reverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 12), nn.Linear(12, 20)
            self.encoder, self.decoder = (nn.GRU(12, 12, batch_first=True) for _ in range(2))

        def forward(self, tokens: Tensor, said: Tensor) -> Tensor:
            return self.head(self.decoder(self.embed(said), self.encoder(self.embed(tokens))[1])[0])  # type: ignore[no-any-return] # a module

    tokens = torch.randint(1, 20, (128, 9))
    goal = tokens.flip(1)
    said = functional.pad(goal[:, :-1], (1, 0)) if shifted else goal
    training = trained(
        Reverse(), cut(tokens, said, goal), lambda m, batch: functional.cross_entropy(m(*batch[:2]).mT, batch[2])
    )
    assert ("unshifted_targets" in kinds(training)) is not shifted


@pytest.mark.parametrize(("by", "sees", "told"), [(1, 0, False), (2, 0, True), (2, 1, False)])
def test_labels_that_are_shifted_twice(by: int, sees: int, told: bool) -> None:
    """Two places on is the next token of a model that sees one place more."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        given = batch[0].roll(-sees, 1)
        return functional.cross_entropy(model(given)[:, :-by].flatten(0, 1), batch[0][:, by:].flatten())

    tokens = torch.randint(20, (128, 12))
    assert ("shifted_twice" in kinds(trained(Next(), cut(tokens), loss))) is told


@pytest.mark.parametrize("scaled", [True, False])
def test_scores_by_a_table_of_unit_normals(scaled: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(40, 64), nn.LayerNorm(64)
            nn.init.normal_(self.table.weight, std=1 / 8 if scaled else 1)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.norm(self.table(tokens).cumsum(1)) @ self.table.weight.T  # type: ignore[no-any-return] # a norm's

    found = kinds(trained(Tied(), cut(torch.randint(40, (128, 12))), following))
    assert found & {"unscaled_tie", "far_above_chance"} == (set() if scaled else {"unscaled_tie"})


@pytest.mark.parametrize("known", [True, False])
def test_a_text_of_unknown_words(known: bool) -> None:
    tokens = torch.randint(2, 20, (128, 12))
    rows = tokens if known else torch.where(torch.rand(128, 12) < 0.95, 1, tokens)
    assert ("one_token" in kinds(trained(Next(), cut(rows), following))) is not known


# -- weights of classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [True, False])
def test_weights_of_classes_that_favour_the_frequent(turned: bool) -> None:
    x, y = torch.randn(512, 8), torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 512, replacement=True)
    share = y.bincount() / len(y)
    weight = share if turned else 1 / share

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], weight)

    assert ("weights_favour_frequent" in kinds(trained(perceptron(8, 3), cut(x, y, size=128), loss))) is turned


@pytest.mark.parametrize("ignored", [0, -100])
def test_a_class_that_is_ignored(ignored: int) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], ignore_index=ignored)

    assert ("ignored_class" in kinds(trained(perceptron(8, 4), cut(*table()), loss))) is (ignored == 0)


@pytest.mark.parametrize("cast", [True, False])
def test_labels_that_were_cast_to_truth_values(cast: bool) -> None:
    x, y = table(classes=6)
    batches = cut(x, y.bool().long() if cast else y)
    assert ("two_of_many_classes" in kinds(trained(perceptron(8, 6), batches))) is cast


# -- numbers -----------------------------------------------------------------------------------------------------------


def pictures(examples: int = 128) -> Tensor:
    """(examples, 3, 12, 12) in [0, 1], smooth along both axes, each channel by itself."""
    rough = torch.randn(examples, 3, 3, 3)
    return functional.interpolate(rough, size=12, mode="bilinear", align_corners=True).sigmoid()


LOST = {
    "channels_not_moved": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape),
    "washed_out": lambda x: (x - 120) / 60,
    "uneven_channels": lambda x: x * torch.tensor([1.0, 1.0, 255.0])[:, None, None],
    "equal_examples": lambda x: torch.where((torch.arange(len(x)) % 2 == 0)[:, None, None, None], 0.0, x),
    "missing_marks": lambda x: torch.where(torch.rand_like(x) < 0.05, -999.0, x),
    "cut_to_whole": lambda x: (x - x.mean()).div(0.6 * x.std()).to(torch.int8).to(torch.uint8) / 255,
}


@pytest.mark.parametrize("kind", LOST)
def test_numbers_that_were_lost(kind: str) -> None:
    x, y = pictures(), torch.randint(3, (128,))
    assert kind in kinds(trained(perceptron(432, 3), cut(LOST[kind](x), y)))


def test_masks_of_the_loss_are_no_examples_that_were_not_loaded() -> None:
    x, counted, y = torch.randn(256, 8), (torch.rand(256, 1) < 0.5).float().expand(-1, 12), torch.rand(256, 12).round()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(model(batch[0]), batch[2], reduction="none")
        return (each * batch[1]).sum() / batch[1].sum().clamp(min=1)

    assert "equal_examples" not in kinds(trained(perceptron(8, 12), cut(x, counted, y), loss))


@pytest.mark.parametrize("drawn", ["grey", "black and white", "standardized"])
def test_sound_pictures_have_lost_nothing(drawn: str) -> None:
    x = pictures()
    x = {"grey": x, "black and white": (x > 0.5).float(), "standardized": (x - x.mean()) / x.std()}[drawn]
    assert not kinds(trained(perceptron(432, 3), cut(x, torch.randint(3, (128,))))) & set(LOST)


@pytest.mark.parametrize(
    "leaking",
    [lambda x, y: 3 * y + 1, lambda x, y: torch.cat([x, y], 1)],  # noqa: ARG005 - both take both
)
def test_a_feature_that_is_a_multiple_of_the_target(leaking: Any) -> None:
    x = torch.randn(256, 8)
    goal = (x @ torch.randn(8, 1)).sin()
    rows = torch.cat([x, leaking(x, goal)], 1)
    model = perceptron(rows.shape[1], 1)
    training = trained(model, cut(rows, goal), lambda model, batch: functional.mse_loss(model(batch[0]), batch[1]))
    assert "leak" in kinds(training)
    sound = trained(perceptron(8, 1), cut(x, goal), lambda model, batch: functional.mse_loss(model(batch[0]), batch[1]))
    assert "leak" not in kinds(sound)


@pytest.mark.parametrize("goes_in", [True, False])
def test_what_goes_to_the_loss_alone_is_no_input(goes_in: bool) -> None:
    """Numbers that hardly differ, such as an old policy's: beside the inputs, or as a weight."""
    x, weight, goal = torch.randn(256, 8), 1.4 + 0.004 * torch.randn(256, 8), torch.randn(256, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, extra, wanted = batch
        return (model(extra if goes_in else rows) - wanted).square().mul(extra.mean(1, keepdim=True)).mean()

    assert ("washed_out" in kinds(trained(perceptron(8, 1), cut(x, weight, goal), loss))) is goes_in


@pytest.mark.parametrize("steps", [1, 6])
def test_a_sequence_s_first_step_that_an_input_tells_is_no_leak(steps: int) -> None:
    x = torch.randn(256, 6, 2)
    goal = x.flip(1).cumsum(1)[..., 0].sin()
    goal[:, :steps] = 2 * x[:, :steps, 0]
    training = trained(
        nn.Linear(2, 1), cut(x, goal), lambda model, batch: functional.mse_loss(model(batch[0])[..., 0], batch[1])
    )
    assert ("leak" in kinds(training)) is (steps == 6)


@pytest.mark.parametrize("blank", [0, 5])
def test_symbols_that_are_the_blank(blank: int) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0]).transpose(0, 1).log_softmax(-1)
        frames, symbols = (torch.full((len(batch[0]),), count) for count in (12, 3))
        return functional.ctc_loss(scores, batch[1], frames, symbols, blank=blank)

    training = trained(nn.Linear(4, 6), cut(torch.randn(128, 12, 4), torch.randint(5, (128, 3))), loss)
    assert ("blank_as_symbol" in kinds(training)) is (blank == 0)


@pytest.mark.parametrize("leaks", [True, False])
def test_a_label_among_the_features(leaks: bool) -> None:
    x, y = table()
    rows = torch.cat([x, functional.one_hot(y if leaks else y.roll(1), 4).float()], 1)
    assert ("leak" in kinds(trained(perceptron(12, 4), cut(rows, y)))) is leaks


@pytest.mark.parametrize("sorted_too", [True, False])
def test_sequences_that_are_to_be_sorted_by_their_lengths(sorted_too: bool) -> None:
    """What a trial changes about their order is refused, and costs no other trial."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn, self.head = nn.Embedding(20, 12), nn.GRU(12, 24, batch_first=True), nn.Linear(24, 2)

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(self.embed(tokens), lengths, batch_first=True)
            return self.head(self.rnn(packed)[1][-1])  # type: ignore[no-any-return] # a module

    def batch() -> list[Tensor]:
        tokens, lengths = torch.randint(3, 20, (32, 8)), torch.randint(3, 9, (32,))
        labels, order = torch.randint(2, (32,)), lengths.argsort(descending=True)
        tokens[:, 1] = labels + 1
        return [tokens[order], lengths[order], labels[order] if sorted_too else labels]

    model = Packed()
    training = Training(
        model, [batch() for _ in range(16)], lambda m, b: functional.cross_entropy(m(*b[:2]), b[2]),
        torch.optim.Adam(model.parameters(), 1e-2),
    )  # fmt: skip
    told = kinds(training)
    assert "refused_trials" in told
    assert ("independent_targets" in told) is not sorted_too
