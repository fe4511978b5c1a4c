"""Lesions: a line of blocks against the network, frozen statistics, and verdicts on made-up rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from depthgauge import data, models
from depthgauge.discovery import find
from depthgauge.studies.stabilizers import lesion, lines, nets
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("form", ["perceptron", "convolutional"])
def test_a_line_is_its_network_and_a_deleted_block_is_left_out(form: str, skips: bool) -> None:
    digits = data.load("digits")
    kind, depth = nets.Kind(skips=skips, normed=True), 5 if form == "perceptron" else 18
    x = digits.train.x[:40]
    network = nets.frozen(lesion.template(form, kind, digits, depth=depth, width=4), x)
    line = lines.Line(network)
    with torch.no_grad():
        assert torch.equal(line(x), network(x))
        deleted = line.free[-1]
        line.order = line.without(deleted)
        block = line.blocks[deleted]
        ends = block.linear if form == "perceptron" else block.branch.conv2
        for parameter in ends.parameters():  # with a skip, a block whose branch is 0 is the identity
            parameter.zero_()
        assert torch.allclose(line(x), network(x), atol=1e-5) == skips
    assert len(line.free) == (4 if form == "perceptron" else 5)
    assert line.swapped(1) == (0, 2, 1, *range(3, len(line.blocks)))


def test_frozen_statistics_are_those_of_the_examples() -> None:
    digits = data.load("digits")
    network = nets.perceptron(nets.KINDS["skips_normed"], digits, depth=3, width=6)
    x = digits.train.x[:600]
    whole = nets.frozen(network, x)
    assert torch.allclose(whole(x), network(x), atol=1e-2)  # the variance over n - 1 in place of n
    assert torch.allclose(whole(x[:7]), whole(x)[:7], atol=1e-5)
    assert not torch.allclose(network(x[:7]), network(x)[:7], atol=1e-2)


def made_up(skips: float, plain: float, steps: bool = True) -> Iterator[Rows]:
    """Networks of 90 % that lose a share of what is above chance; one more block costs as much each, or all at once."""
    for kind, share in (("skips_normed", skips), ("plain_normed", plain)):
        for seed in range(-3, 8):
            params = {"part": "lesion", "form": "perceptron", "kind": kind, "lr": 0.1, "seed": seed}
            case = Case.of(params)
            yield from (case.rows(metric, 0.9) for metric in lesion.METRICS)
            for block in range(1, 11) if seed >= 0 else ():
                after = 0.9 - 0.8 * (share + 1e-3 * (seed + block))
                yield case.rows("deleted", after, layer_index=block)
                yield case.rows("swapped", after, layer_index=block)
                yield case.rows(lines.ANEW, 0.8, layer_index=block)
                lost = block / 10 if steps and kind == "skips_normed" else float(block > 3)
                yield case.rows("several", 0.9 - 0.8 * lost - 1e-4 * seed, layer_index=block)


def test_a_collapse_is_told_from_a_scratch(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(lesion.PART, made_up(0.02, 0.8))
    assert (answers.statuses["lesion"], answers.statuses["lesions_add"]) == (Status.HOLDS, Status.HOLDS)
    assert any("from 90.0% to 87.7%, without them from 90.0% to 25.3%" in text for text in answers.sentences)
    assert any("measured anew" in text for text in answers.sentences)
    for skips, plain in ((0.3, 0.8), (0.02, 0.3)):
        assert analysed(lesion.PART, made_up(skips, plain)).statuses["lesion"] is Status.FAILS
    assert analysed(lesion.PART, made_up(0.02, 0.8, steps=False)).statuses["lesions_add"] is Status.FAILS


def test_only_reported_runs_are_lesioned() -> None:
    params = {"part": "lesion", "form": "perceptron", "kind": "plain", "data": "digits", "depth": 4, "width": 5,
              "steps": 3, "lr": 0.1}  # fmt: skip
    rows = list(lesion.run([Case.of({**params, "seed": seed}) for seed in (-1, 0)], Context()))
    assert {row.metric for row in rows if row.case["seed"] == -1} == set(lesion.METRICS)
    own = [row for row in rows if row.case["seed"] == 0]
    assert {row.metric for row in own} == {*lesion.METRICS, "deleted", "swapped", "several"}
    assert all(0 <= float(np.asarray(row.value)) <= 1 for row in own)
    assert models.layers(nets.perceptron(nets.KINDS["plain"], data.load("digits"), depth=4, width=5))


def test_chunks_of_large_convolutional_networks_end_within_the_studys_limit_of_time() -> None:
    study = find("stabilizers").load()

    def sizes(preset: str) -> set[int]:
        chunks = study.chunks(preset)
        own = [chunk for chunk in chunks if {case.get("form") for case in chunk.cases} == {"convolutional"}]
        return {len(chunk.cases) for chunk in own}

    assert sizes("standard") == {6}
    assert sizes("full") == {1}


@pytest.mark.parametrize(
    ("form", "dataset", "networks"),
    [("perceptron", "mnist5k", 10), ("convolutional", "digits", 10), ("convolutional", "mnist5k", 1)],
)
def test_networks_that_are_lesioned_come_in_smaller_chunks(form: str, dataset: str, networks: int) -> None:
    assert lesion.most_networks(Case.of({"form": form, "data": dataset, "seed": 0})) == networks
