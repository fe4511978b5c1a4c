"""Depth laws and deep training: stacks against torch by hand and autograd, theory against sums, verdicts both ways."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from depthgauge import initialization, models, theory
from depthgauge.studies.stabilizers import deep_stacks, depth_laws, depth_trained, depth_transformers
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status, Verdict

SCHEMES = sorted(deep_stacks.SCHEMES)


def by_hand(scheme: str, p: dict[str, torch.Tensor], x: torch.Tensor, blocks: int) -> torch.Tensor:
    """One network's stream, from what the papers say of a block; learned factors and offsets at their start."""
    batch = nn.BatchNorm1d(x.shape[1], affine=False, track_running_stats=False).double()
    layer = nn.LayerNorm(x.shape[1], elementwise_affine=False).double()
    relu, a, b = torch.relu, p["inner"][:, 0], p["outer"][:, 0]
    for i in range(blocks):
        plain = relu(relu(x) @ a[i]) @ b[i]
        x = {
            "plain": lambda x, f: x + f,
            "Fixup": lambda x, f: x + f,
            "1/sqrt(L)": lambda x, f: x + f / math.sqrt(blocks),
            "SkipInit/ReZero": lambda x, _: x,
            "LayerScale": lambda x, _, i=i: x + 0.1 * relu(relu(layer(x)) @ a[i]) @ b[i],
            "DeepNorm": lambda x, f: layer(x * blocks**0.25 + f),
            "norm after": lambda x, f: layer(x + f),
            "layer norm": lambda x, _, i=i: x + relu(relu(layer(x)) @ a[i]) @ b[i],
            "batch norm": lambda x, _, i=i: x + relu(batch(relu(batch(x)) @ a[i])) @ b[i],
        }[scheme](x, plain)  # type: ignore[no-untyped-call]
    return x


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stack_is_what_its_paper_says(scheme: str) -> None:
    own = deep_stacks.SCHEMES[scheme]
    drawn = deep_stacks.draw(own, [3, 8], blocks=3, width=6, inputs=5, classes=4)
    p = {name: each.double() for name, each in drawn.items()}
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    first = {name: each[:, :1] if name in ("inner", "outer") else each[:1] for name, each in p.items()}
    expected = by_hand(scheme, first, x[0] @ p["first"][0], 3)
    torch.testing.assert_close(deep_stacks.streams(own, p, x)[-1][0][0], expected, rtol=1e-6, atol=1e-8)


def test_first_draws_are_shared_and_fixup_starts_silent() -> None:
    plain, fixup = (
        deep_stacks.draw(deep_stacks.SCHEMES[name], [4], blocks=4, width=6, inputs=5, classes=3)
        for name in ("plain", "Fixup")
    )
    torch.testing.assert_close(fixup["inner"], plain["inner"] / 2)  # L^(-1/(2m-2)) of 4 branches of 2 layers
    assert not fixup["outer"].any()
    assert not fixup["output"].any()


def test_replicas_train_as_one_network_by_autograd_would() -> None:
    own, x, y = deep_stacks.SCHEMES["Fixup"], torch.randn(20, 5), torch.arange(20) % 3
    drawn = deep_stacks.draw(own, [1, 2], blocks=2, width=4, inputs=5, classes=3)
    moved = {name: each.clone().requires_grad_() for name, each in drawn.items()}
    for _ in range(2):  # a batch of all examples: the order does not matter
        deep_stacks._step(own, moved, x.expand(2, -1, -1), y.expand(2, -1), torch.tensor([0.1, 0.5]))
    at = {"inner": 1, "outer": 1, "factor": 1, "offsets": 2}
    alone = {name: each.narrow(at.get(name, 0), 1, 1).clone().requires_grad_() for name, each in drawn.items()}
    for _ in range(2):
        loss = cross_entropy(deep_stacks.scores(own, alone, x[None])[0], y)
        for each, gradient in zip(alone.values(), torch.autograd.grad(loss, list(alone.values())), strict=True):
            each.data -= 0.5 * gradient
    for name, each in moved.items():
        torch.testing.assert_close(each.narrow(at.get(name, 0), 1, 1), alone[name], rtol=1e-5, atol=1e-7)


def test_a_run_that_has_the_target_at_once_takes_no_step_and_one_that_diverges_none_counts() -> None:
    own, x, y = deep_stacks.SCHEMES["plain"], torch.randn(20, 5), torch.arange(20) % 3
    drawn = deep_stacks.draw(own, [1, 2], blocks=2, width=4, inputs=5, classes=3)
    settings = {"seeds": [1, 2], "steps": 12, "batch": 5, "watched": 10}
    found = deep_stacks.train(own, drawn, x, y, rates=[0.1, 0.1], target=0.0, **settings)  # type: ignore[arg-type]
    assert found.steps.tolist() == [0, 0]
    lost = deep_stacks.train(own, drawn, x, y, rates=[1e30, 1e30], target=1.0, **settings)  # type: ignore[arg-type]
    assert (lost.steps.tolist(), lost.reached.any(), lost.accuracy.tolist()) == ([12, 12], False, [0.0, 0.0])


def test_growth_laws_are_their_products() -> None:
    plain, layer, batch = (theory.residual_growth(norm, 5, scale=0.5) for norm in ("none", "layer", "batch"))
    assert plain.forward == pytest.approx(theory.residual_trajectory("relu", 2**0.5, 0.5, 5))
    assert layer.forward == pytest.approx(theory.residual_trajectory("relu", 2**0.5, 0.5, 5, order="pre-norm"))
    assert layer.backward[0] == pytest.approx(layer.forward[-1] / layer.forward[0])
    apart, factors = 1 - 1 / math.pi, 1.0
    for block in range(5):
        factors *= 1 + 0.25 / apart / (1 + 0.25 * apart * block)
    assert batch.backward[0] == pytest.approx(factors)
    assert theory.residual_growth("batch", 4).share == pytest.approx(1 / np.arange(2, 6))
    assert theory.residual_growth("post", 4, width=10).backward[0] == pytest.approx(0.95**4)
    with pytest.raises(ValueError, match="a norm is none, layer, batch, post"):
        theory.residual_growth("pre", 3)  # type: ignore[arg-type]  # it is the test


def test_a_transformer_s_stream_and_gradient_are_those_of_autograd_and_near_theory() -> None:
    torch.manual_seed(0)
    for order in ("pre", "post"):
        model = models.build(
            "transformer", input_shape=(3, 8), vocabulary=None, classes=10, each_step=False, width=8, depth=2, heads=4,
            activation="relu", order=order, seed=5, init=initialization.scheme("xavier"),
        ).double()  # fmt: skip
        x = torch.randn(1, 3, 8, dtype=torch.float64)
        logs = []
        for label in range(10):
            loss = cross_entropy(model(x), torch.tensor([label]))
            weight = model.get_parameter("blocks.1.feed_forward.project.weight")
            logs.append(torch.autograd.grad(loss, weight)[0].norm().log())
        assert {d: v for d, v, _ in depth_transformers.measured(model, x)}[2] == pytest.approx(float(sum(logs)) / 10)
    found = []
    for seed in range(4):
        model = models.build(
            "transformer", input_shape=(3, 96), vocabulary=None, classes=10, each_step=False, width=96, depth=2,
            heads=4, activation="relu", order="pre", seed=seed, init=depth_transformers._unqueried,
        ).double()  # fmt: skip
        x = torch.randn(8, 3, 96, dtype=torch.float64)
        found.append([q for _, _, q in depth_transformers.measured(model, x)])
    assert np.mean(found, axis=0) == pytest.approx(theory.transformer_stream(2, tokens=3, q_0=2.0)[1:], rel=0.1)


def stacks(off: float = 0.0) -> Iterator[Rows]:
    for scheme, own in deep_stacks.SCHEMES.items():
        law = own.law(4, 8.0)
        for seed in range(20):
            case = Case.of({"part": "depth_laws", "scheme": scheme, "depth": 4, "width": 8, "inputs": 8, "seed": seed})
            jitter = 1e-3 * (seed % 5 - 2)
            yield case.rows("growth", math.log(law.forward[-1] / law.forward[0]) + jitter, direction="forward")
            yield case.rows("growth", math.log(law.backward[0]) + jitter + off, direction="backward")
            for block in (1, 2, 4) if scheme == "batch norm" else ():
                yield case.rows("share", (1 + off) * law.share[block - 1] + jitter, layer_index=block)
                yield case.rows("batch_share", law.batch_share[block - 1] + jitter, layer_index=block)


def test_growth_and_shares_are_held_against_theory(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    as_predicted, off = analysed(depth_laws.PART, stacks()), analysed(depth_laws.PART, stacks(0.9))
    assert as_predicted.statuses == {"growth": Status.HOLDS, "batch_norm_shrinks": Status.HOLDS}
    assert off.statuses == {"growth": Status.DEPENDS, "batch_norm_shrinks": Status.FAILS}
    assert any("theory has both" in text for text in as_predicted.sentences)
    assert any(
        "the gradient's square shrinks to 0.77 of what goes in (geometric mean)" in t for t in as_predicted.sentences
    )
    assert set(as_predicted.tables["branch_shares"]["of"]) == set(depth_laws.OF.values())


def test_depth_may_come_as_a_float_where_another_part_has_none(tidy) -> None:  # type: ignore[no-untyped-def]
    answers = [*depth_laws.PART.analyse(tidy(stacks()).astype({"depth": float}))]
    assert any(isinstance(each, Verdict) and each.status is Status.HOLDS for each in answers)
    rows = tidy(trainings(("plain",))).astype({"depth": float})
    assert any(isinstance(each, Verdict) for each in depth_trained.PART.analyse(rows))


def transformers(post: float, pre: float) -> Iterator[Rows]:
    law = theory.transformer_stream(16, tokens=4, q_0=2.0) ** -0.5
    for order, queries, seed in ((o, q, s) for o in ("post", "pre") for q in ("zero", "drawn") for s in range(12)):
        case = Case.of(
            {"part": "depth_transformers", "order": order, "queries": queries, "depth": 16, "width": 8, "tokens": 4,
             "examples": 2, "seed": seed}
        )  # fmt: skip
        for depth in (1, 2, 4, 8, 16):
            power = post * math.log(depth) if order == "post" else math.log(law[depth]) + pre * math.log(depth)
            yield case.rows("ln_norm", power + 1e-3 * (seed % 5), layer_index=depth)
            yield case.rows("stream", 2.0 + depth, layer_index=depth)


def test_powers_of_depth_are_told_apart(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    right = analysed(depth_transformers.PART, transformers(0.0, 0.0))
    assert right.statuses == dict.fromkeys(("post_ln", "pre_ln", "pre_ln_stream"), Status.HOLDS)
    wrong = analysed(depth_transformers.PART, transformers(-0.5, 0.4))
    assert wrong.statuses["post_ln"] is wrong.statuses["pre_ln"] is Status.FAILS
    assert wrong.statuses["pre_ln_stream"] is not Status.HOLDS


def trainings(fails: tuple[str, ...], best: float = 0.2) -> Iterator[Rows]:
    for scheme in (*deep_stacks.SCHEMES, depth_trained.CONTROL):
        for depth in (8, 32) if scheme != depth_trained.CONTROL else (0,):
            for lr, seed in ((lr, seed) for lr in (0.1, 0.2, 0.4) for seed in range(-3, 14)):
                case = Case.of(
                    {"part": "depth_trained", "scheme": scheme, "depth": depth, "lr": lr, "seed": seed, "steps": 100,
                     "width": 8}
                )  # fmt: skip
                arrives = scheme not in fails or depth < 32
                ends = {"steps": 50.0 if arrives else 100.0, "reached": float(arrives), "cut": 0.2}
                score = -ends["steps"] - (lr != best)
                for metric, value in {**ends, "score": score}.items():
                    yield case.rows(metric, value)


def test_a_scheme_trains_as_deep_as_normalization_or_not(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    deep = analysed(depth_trained.PART, trainings(("plain", "norm after")))
    assert deep.statuses["trains_deep"] is Status.HOLDS
    assert any("most do not with plain (0), norm after (0)." in text for text in deep.sentences)
    edge = analysed(depth_trained.PART, trainings(("plain", "norm after"), best=0.1))
    told = "undecided with plain (0, at the lowest rate tried), norm after (0, at the lowest rate tried)."
    assert any(told in text for text in edge.sentences)
    short = analysed(depth_trained.PART, trainings(("plain", "Fixup")))
    assert short.statuses["trains_deep"] is Status.DEPENDS
    assert "false for Fixup" in short.verdicts["trains_deep"].says
    shallow = analysed(depth_trained.PART, trainings(("Fixup", "layer norm", "batch norm")))
    assert shallow.statuses["trains_deep"] is Status.HOLDS  # normalization does not train there either


def test_a_scheme_that_fails_where_normalization_is_open_is_not_said_to_train_as_deep(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def half(row: Rows) -> bool:
        return (
            row.case["scheme"] in depth_trained.NORMALIZED and row.case["depth"] == 32 and row.case["seed"] in range(5)
        )

    ends = {"steps": 100.0, "reached": 0.0}
    rows = [
        replace(row, value=ends[row.metric]) if half(row) and row.metric in ends else row
        for row in trainings(("plain", "Fixup"))
    ]
    answers = analysed(depth_trained.PART, rows)
    verdict = answers.verdicts["trains_deep"]
    assert verdict.status is Status.INCONCLUSIVE
    assert "undecided for Fixup" in verdict.says
    trained = answers.tables["trained"].set_index(["scheme", "depth"])  # what is drawn is what is answered
    asked = answers.tables["trained_shares"].set_index(["scheme", "depth"])
    ends_of = asked.columns[asked.columns.str.startswith(("low_", "high_"))]
    drawn = trained.loc[asked.index, ["low_95", "high_95"]]
    assert (drawn.to_numpy() == asked[ends_of].to_numpy()).all()


def test_the_gradient_over_that_at_depth_1_is_a_ratio_of_each_network(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    lines = analysed(depth_transformers.PART, transformers(0.0, 0.0)).tables["last_gradients"]
    assert (lines["high_95"] - lines["low_95"]).abs().max() < 1e-9  # the networks differ by a factor at all depths
    assert lines.set_index(["network", "depth"]).loc[("pre-LN, queries zero", 1), "value"] == pytest.approx(1.0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_few_seeds_are_told_without_intervals_that_they_have_not(seeds: int, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    for part, rows in ((depth_transformers.PART, transformers(0.0, 0.0)), (depth_laws.PART, stacks())):
        answers = analysed(part, [row for row in rows if row.case.integer("seed") < seeds])
        assert set(answers.statuses.values()) == {Status.INCONCLUSIVE}
        assert answers.sentences
        assert not any("nan" in text for text in answers.sentences)
