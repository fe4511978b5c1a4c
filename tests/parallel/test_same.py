"""A training on several ranks held against the same on one: what is told apart, and that nothing sound is accused."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
import trainings_of_users as trainings
from torch import nn

from depthgauge import Training, parallel
from depthgauge.parallel.causes import counted, explained
from depthgauge.parallel.shards import chosen, examples, shards
from depthgauge.seeding import Purpose, generator

pytestmark = pytest.mark.usefixtures("warm_ranks")
SOUND = (
    "plain", "layer_norm", "convolutional", "attention", "of_attributes", "unused", "autocast", "half", "double",
    "weighted_classes", "penalized", "batch_norm_evaluated", "even_loader", "token_mean_equal", "graphs", "sparse",
    "lazy", "module_of_loss", "of_experts", "batch_norm_synchronized", "bfloat16_inside",
    "texts",
)  # fmt: skip
OTHERS = {
    "batch_norm": "batch norm", "batch_norm_two": "batch norm", "batch_norm_function": "batch norm",
    "batch_norm_dropout": "batch norm", "batch_norm_sum": "sum", "summed": "sum", "summed_ragged": "sum",
    "summed_squares": "sum", "summed_dropout": "sum", "token_mean": "weights", "token_mean_masked": "weights",
    "token_none": "weights", "few_parameters": "weights",
    "ragged": "ragged", "ragged_loader": "ragged", "ragged_first": "ragged",
    "ragged_one": "empty", "dropout": "random", "dropout_attention": "random", "noisy": "random",
    "own_generator": "unrepeatable", "contrastive": "batch", "root": "nonlinear", "counting": "buffers",
    "batch_norm_single": "raises", "ragged_generator": "ragged", "bfloat16_inside_ragged": "ragged",
    "batch_norm_alone": "batch norm", "batch_norm_token_mean": "weights", "autocast_token_mean": "weights",
}  # fmt: skip
COARSE = {"own_generator", "bfloat16_inside_ragged", "autocast_token_mean"}  # the band is wide
NOTHING = ("zero", "not_finite", "single")


STEPS = ("spectral", "plain", "penalized", "summed", "batch_norm", "token_mean", "ragged")  # tried with accumulation


@cache
def launched() -> dict[tuple[str, int], parallel.Same]:
    """All that is tried on two ranks, in one launch."""
    jobs = [*((name, 1) for name in (*SOUND, *OTHERS, *NOTHING, "wrapped")), *((name, 2) for name in STEPS)]
    outcome = parallel.launch(trainings.in_turn, jobs, limit=60)
    assert outcome.well, outcome.why
    answers: dict[tuple[str, int], parallel.Same] = outcome.answers[0]
    return answers


def compared(accumulate: int = 1) -> dict[str, parallel.Same]:
    return {name: found for (name, steps), found in launched().items() if steps == accumulate}


@pytest.mark.alone
@pytest.mark.parametrize("name", SOUND)
def test_sound_trainings_are_the_same(name: str) -> None:
    found = compared()[name]
    assert found.same is True, found
    assert bool(found)
    assert (found.cause, found.where) == ("", "")
    assert abs(found.factor - 1) <= found.distance <= found.band
    assert not found.to_frame().beyond.any()


@pytest.mark.alone
@pytest.mark.parametrize(("name", "cause"), OTHERS.items())
def test_others_are_told_apart_with_their_cause(name: str, cause: str) -> None:
    found = compared()[name]
    assert found.same is False, found
    assert not bool(found)
    assert found.cause == cause, found
    if cause not in {"empty", "raises"}:
        assert found.where in set(found.to_frame().query("beyond").name)
    if cause not in {"empty", "raises", "buffers"}:
        assert found.distance > 100 * found.band or name in COARSE


@pytest.mark.alone
@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_said_where_nothing_can_be_compared(name: str) -> None:
    found = compared()[name]
    assert found.same is None, found
    assert found.why


@pytest.mark.alone
def test_factors_and_weights_are_those_of_arithmetic() -> None:
    found = compared()
    for name in ("summed", "summed_ragged", "summed_squares"):
        assert math.isclose(found[name].factor, 0.5, rel_tol=1e-6)
        assert math.isclose(found[name].distance, 0.5, rel_tol=1e-6)
    tokens = (9 + 7 + 8 + 9, 2 + 3 + 1 + 4)
    assert np.allclose(found["token_mean"].decisive.weights, np.array(tokens) / sum(tokens), atol=1e-6)
    assert "`labels`" in found["token_mean"].why or "`attention_mask`" in found["token_mean"].why
    assert found["ragged"].decisive.place == 2
    assert found["ragged"].decisive.sizes == (4, 3)
    assert "SyncBatchNorm they agree" in found["batch_norm"].why
    assert found["counting"].where == "seen"
    assert "entries of `mask` that are not 0" in found["few_parameters"].why
    assert "find_unused_parameters=True" in str(found["of_experts"])
    assert "scale" in set(found["module_of_loss"].to_frame().name.str.rpartition(".")[2])


@pytest.mark.alone
def test_a_module_that_ddp_wraps_already_is_refused() -> None:
    assert "ParallelError: a setup returns the bare module" in str(compared()["wrapped"])


@pytest.mark.alone
def test_accumulation_is_compared_likewise() -> None:
    found = compared(2)
    assert found["plain"].same is True
    assert found["penalized"].same is True
    assert math.isclose(found["summed"].factor, 0.25, rel_tol=1e-6)
    assert "the mean over ranks and accumulation steps is 1/4" in found["summed"].why
    assert {name: found[name].cause for name in ("batch_norm", "token_mean", "ragged")} == {
        "batch_norm": "batch norm", "token_mean": "weights", "ragged": "ragged",
    }  # fmt: skip
    assert found["ragged"].decisive.sizes == (2, 2, 2, 1)
    assert found["spectral"].cause == "state"
    assert "changes the model for those after it" in found["spectral"].why


@pytest.mark.alone
def test_what_rounding_would_explain_is_different_where_float64_says_so() -> None:
    found = compared()["autocast_token_mean"]
    assert found.distance < found.band
    assert "but not in float64, where they part, too" in found.why


# -- what a user can get wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"setup": lambda: None}, "define it with def"),
        ({"setup": "nowhere:setup"}, "cannot be loaded"),
        ({"setup": trainings.plain, "accumulate": 0}, "accumulate is a whole number"),
        ({"setup": trainings.plain, "accumulate": True}, "accumulate is a whole number"),
        ({"setup": trainings.plain, "ranks": 0}, "ranks are a whole number"),
        ({"setup": trainings.plain, "batches": 2.5}, "batches is a whole number"),
        ({"setup": trainings.plain, "split": "halves"}, "is not a package.module:function"),
        ({"setup": trainings.plain, "device": "tpu"}, "run on cpu or cuda"),
        ({"setup": trainings.plain, "device": None}, "run on cpu or cuda"),
        ({"setup": trainings.plain, "limit": math.nan}, "limit is a number of seconds"),
        ({"setup": trainings.plain, "limit": "5"}, "limit is a number of seconds"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(parallel.ParallelError, match=said):
        parallel.same(**arguments)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.alone
def test_a_setup_that_makes_no_training_is_named() -> None:
    with pytest.raises(parallel.ParallelError, match=r"trainings_of_users:net .*returns a Sequential"):
        parallel.same("trainings_of_users:net", ranks=1)


def test_batches_without_a_common_first_dimension_are_refused() -> None:
    with pytest.raises(parallel.ParallelError, match="first dimensions 4, 6"):
        examples((torch.zeros(4, 2), torch.zeros(6)))
    with pytest.raises(parallel.ParallelError, match="holds no tensor"):
        examples(["a", "b"])


# -- shards ------------------------------------------------------------------------------------------------------------


def test_shards_are_those_of_tensor_split() -> None:
    batch = {"x": torch.arange(14).view(7, 2), "y": (torch.arange(7), torch.ones(())), "text": list("abcdefg")}
    for parts in (1, 2, 3, 5):
        made = shards(batch, parts)
        for mine, theirs in zip(made, torch.tensor_split(batch["x"], parts), strict=True):
            assert torch.equal(mine["x"], theirs)
            assert torch.equal(mine["y"][0], theirs[:, 0] // 2)
            assert "".join(mine["text"]) == "".join("abcdefg"[i] for i in mine["y"][0])
            assert mine["y"][1].dim() == 0


def test_a_tensor_of_one_row_belongs_to_all_examples() -> None:
    first, second = shards((torch.zeros(4, 3), torch.ones(1, 3)), 2)
    assert first[0].shape == (2, 3)
    assert second[1].shape == (1, 3)


def test_the_first_batch_of_every_size_is_chosen() -> None:
    training = Training(nn.Linear(6, 3), trainings.pairs(8, 8, 8, 5, 8, 5, 3))
    found, looked = chosen(training, 1)
    assert [(each.place, each.examples, each.last) for each in found] == [(0, 8, False), (3, 5, False), (6, 3, True)]
    assert looked == 7


def test_a_loader_is_not_read_to_its_end_to_know_its_sizes() -> None:
    found, looked = chosen(trainings.large(), 1)
    assert [(each.place, each.examples) for each in found] == [(0, 64), (1562, 32)]
    assert looked == 1563


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_are_named_by_what_they_are() -> None:
    pieces = torch.randn(3, 90, generator=generator(0, Purpose.INPUTS), dtype=torch.float64).numpy()
    sizes = (3, 2, 2)
    for weights, cause in (
        ((1 / 3, 1 / 3, 1 / 3), ""), ((1, 1, 1), "sum"), ((3 / 7, 2 / 7, 2 / 7), "ragged"),
        ((0.5, 0.3, 0.2), "weights"), ((0.5, 0.3, 0.1), "nonlinear"),
    ):  # fmt: skip
        fit = explained(np.array(weights) @ pieces, pieces, sizes, 1e-6)
        assert fit.cause == cause
        assert np.allclose(fit.weights, weights)
    assert explained(pieces[0] * pieces[1], pieces, sizes, 1e-6).cause == "batch"
    few = pieces[:, :9]  # too few values to tell weights by
    assert explained(np.array([0.5, 0.3, 0.2]) @ few, few, sizes, 1e-6).cause == "batch"


def test_what_weights_count_is_found_in_the_batch() -> None:
    pieces = [{"mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}, {"mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}]
    assert counted(pieces, (4 / 9, 5 / 9)) == "entries of `mask` that are not 0"
    assert counted(pieces, (0.3, 0.7)) == ""
