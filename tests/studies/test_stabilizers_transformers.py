"""Transformers with stabilizers: a run against torch by hand, what is looked at, and verdicts on made-up rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from depthgauge import data, models, replicas, training
from depthgauge.studies.stabilizers import recipes, transformers
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def case(**more: Any) -> Case:
    at: dict[str, Any] = {"part": "transformers", "variant": "z_loss", "lr": 0.01, "depth": 1, "width": 8}
    return Case.of({**at, "steps": 4, "batch": 8, "seed": 1, **more})


def built(**more: Any) -> Any:
    return models.build(
        "transformer", input_shape=(1, 8, 8), classes=10, vocabulary=None, each_step=False, fused=False, heads=2,
        depth=1, width=8, **more,
    )  # fmt: skip


def test_a_run_is_that_of_torch() -> None:
    one = case()
    measured = {row.metric: row.value for row in transformers.PART.run([one], Context())}
    fit, _ = data.hold_out(data.load("digits").train, training.HELD_OUT)
    seed = one.random_seed("seed", "width", "depth")
    model = replicas.stack(built(), [seed]).module(0)
    adam = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.95))
    for step, indices in enumerate(replicas.order(seed, len(fit.x), 8, 4)):
        adam.param_groups[0]["lr"] = 0.01 * (0.5 if step == 0 else 0.5 + 0.5 * math.cos(math.pi * max(step - 1, 0) / 3))
        adam.zero_grad()
        outputs = model(fit.x[indices])
        picked = outputs.gather(1, fit.y[indices][:, None]).squeeze(1)
        log_z = outputs.exp().sum(1).log()
        ((log_z - picked).mean() + 1e-4 * (log_z**2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    with torch.no_grad():
        outputs = model(fit.x)
    assert measured["loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, fit.y).item(), rel=1e-4)
    assert measured["log_z"] == pytest.approx(float(outputs[:200].exp().sum(1).log().abs().mean()), rel=1e-4)


def test_attention_logits_are_the_largest_product_of_the_past_and_bounded_by_qk_norm() -> None:
    x = data.load("digits").train.x[:20]
    model = built().double()
    attention, seen = model.blocks[0].attention, []
    attention.qkv.register_forward_hook(lambda _module, _given, out: seen.append(out))
    largest, _ = recipes.logits(model, x.double())
    q, k, _ = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in seen[0].chunk(3, -1))
    assert largest == pytest.approx(float((q @ k.mT).tril().abs().max()) / 2)
    with torch.no_grad():
        attention.qkv.weight.mul_(1e3)
    assert recipes.logits(model, x.double())[0] > 1e3 * largest
    normed = built(qk_norm=True).double()
    with torch.no_grad():
        normed.blocks[0].attention.qkv.weight.mul_(1e3)
    assert recipes.logits(normed, x.double())[0] <= math.sqrt(4)  # vectors of length sqrt(4) each, over sqrt(4)
    with torch.no_grad():
        model.output.weight.fill_(math.nan)
    assert recipes.logits(model, x.double()) == (math.inf, math.inf)


def rows(qk_growth: float, qk_loss: float, cold: dict[str, float]) -> Iterator[Rows]:
    """Loss rises with the rate, by less with QK-norm; logits grow; without warm-up some nats are lost."""
    for variant in transformers.VARIANTS:
        for k, lr in enumerate(transformers.RATES[::2]):
            for seed in range(-1, 7):
                one, noise = case(variant=variant, lr=lr, seed=seed), 0.002 * math.sin(3 * seed + k)
                steep = qk_loss if variant == "qk_norm" else 0.5
                growth = qk_growth if variant == "qk_norm" else 5.0
                yield one.rows("loss", 0.2 + steep * abs(k - 1) + noise + cold.get(variant, 0.0))
                yield one.rows("loss_at_start", 3.0)
                lost = variant == "post" and lr > 0.2 and seed == 0
                yield one.rows("logit", math.nan if lost else growth**k * (1 + noise))
                yield one.rows("log_z", 3.0 + noise)


@pytest.mark.parametrize(
    ("made", "qk_norm", "warmup"),
    [
        ((1.5, 0.2, {"post_cold": 0.5}), Status.HOLDS, Status.HOLDS),
        ((1.5, 0.5, {}), Status.DEPENDS, Status.DEPENDS),
        ((5.0, 0.9, {"pre_cold": 0.5}), Status.FAILS, Status.FAILS),
    ],
)  # fmt: skip
def test_verdicts(analysed: Callable[..., Any], made: tuple[Any, ...], qk_norm: Status, warmup: Status) -> None:
    answers = analysed(transformers.PART, rows(*made))
    assert (answers.statuses["qk_norm"], answers.statuses["warmup"]) == (qk_norm, warmup)
    assert answers.statuses["z_loss"] is Status.FAILS
    for text in (answers.sentences[0], answers.verdicts["qk_norm"].why):
        told = re.search(r"logit grows (\S+)-fold from the lowest rate to the highest, (\S+)-fold without it", text)
        assert told
        assert [float(each) for each in told.groups()] == pytest.approx([made[0] ** 3, 5.0**3], rel=0.02)


def test_few_seeds_are_told_without_intervals_that_they_have_not(analysed: Callable[..., Any]) -> None:
    few = [row for row in rows(1.5, 0.2, {"post_cold": 0.5}) if row.case.integer("seed") < 3]
    sentences = analysed(transformers.PART, few).sentences
    assert sentences[0].endswith("in place of 0.500, a change of -0.300.")
    assert not any("nan" in text for text in sentences)


def test_logits_that_are_no_number_at_the_highest_rate_are_the_largest_there_are(analysed: Callable[..., Any]) -> None:
    highest = transformers.RATES[6]
    lost = [
        replace(row, value=math.nan)
        if row.metric == "logit" and (row.case["variant"], row.case["lr"]) == ("pre", highest) else row
        for row in rows(1.5, 0.2, {})
    ]  # fmt: skip
    growth = analysed(transformers.PART, lost).tables["transformer_sensitivity"].set_index("variant")["growth"]
    assert growth["pre-LN"] == math.inf
    assert growth["pre-LN, QK-norm"] == pytest.approx(1.5**3, rel=0.01)
