"""Heads frozen with their base, clipped lines, rates that stay behind, large inputs that a norm takes the size from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import depthgauge
from depthgauge import Training
from depthgauge.checking.questions.learning_rate.branches import Branches
from depthgauge.checking.questions.learning_rate.longer import Longer
from depthgauge.checking.questions.signal import frozen, passed_by, passing
from depthgauge.checking.questions.signal.depth import Passage
from depthgauge.checking.questions.signal.depth import passage as passage_of
from depthgauge.checking.questions.signal.remedies import Trial
from depthgauge.checking.questions.signal.units import Units
from depthgauge.checking.questions.signal.wiring import Wiring

WIDTH, ROWS = 24, 32


class _Prompted(nn.Module):
    """Convolutions that have learnt, a vector that is added to what they get, and a new head."""

    def __init__(self, learnt: bool) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(4, 12))
        self.body = nn.Sequential(nn.Conv1d(4, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 5)
        for each in self.body.parameters():
            each.data.mul_(2.0 if learnt else 1.0)
            each.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x + self.prompt).mean(2))


@pytest.mark.parametrize(("learnt", "still", "told"), [(True, True, True), (True, False, False), (False, True, False)])
def test_a_new_head_frozen_with_a_base_that_has_learnt_is_found(learnt: bool, still: bool, told: bool) -> None:
    """And not where the base is new as well, so that nothing tells the head from it."""
    net = _Prompted(learnt)
    net.head.requires_grad_(not still)
    batch = (torch.randn(ROWS, 4, 12), torch.randint(5, (ROWS,)))
    training, seen = Training(net, [batch]), passing.Passed()
    with training.untouched():
        passing.go(training, [batch], seen, others={})
    found = {each.kind: each.where for each in frozen.findings(Wiring(training, seen, None, {}, batch))}
    assert found.get("frozen_layer") == (("head",) if told else None)


def _units(activation: nn.Module, scale: float) -> Units:
    parts = [part for _ in range(4) for part in (nn.Conv2d(6, 6, 3, padding=1), activation)]
    net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(6 * 16, 1))
    for each in net:
        if isinstance(each, nn.Conv2d):
            nn.init.normal_(each.weight, 0, scale)
    units = Units()
    units.note(net(torch.randn(ROWS, 6, 4, 4)).mean(), dict(net.named_parameters()))
    return units


@pytest.mark.parametrize("activation", [nn.Hardtanh(), nn.Hardtanh(-3, 3), nn.Hardsigmoid()])
@pytest.mark.parametrize(("scale", "ended", "told"), [(30.0, 0.5, True), (0.1, 0.5, False), (30.0, 1.8, False)])
def test_clipped_lines_are_told_where_another_initialization_gets_further(
    activation: nn.Module, scale: float, ended: float, told: bool
) -> None:
    """By their own ends; where none gets further, nothing is."""
    units, passage = _units(activation, scale), Passage(None, (3.0,), 1.0, 1.0, 1.0)  # type: ignore[arg-type] # no table
    start = (2.0, 2.0, 2.0)
    plain = Trial("", "", start, (1.9, 1.91, 1.9), 3.0, 30)
    remedy = Trial("gain 1", "draw anew", start, (ended, ended + 0.01, ended), 0.1, 30)
    found = list(passed_by.of_clipped(units, units, passed_by.Depth(passage, plain, (remedy,))))
    assert [each.kind for each in found] == (["saturated_units"] if told else [])
    assert not told or found[0].where == ("0", "2", "4", "6")


@pytest.mark.parametrize(("steps", "kind"), [(6, "not_measured"), (30, "uneven")])
def test_a_gradient_that_fades_is_undecided_where_there_was_no_time_for_remedies(steps: int, kind: str) -> None:
    """And is asked about again with the time that other questions leave."""
    net = nn.Sequential(*(part for _ in range(8) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())), nn.Linear(WIDTH, 3))
    for each in net.parameters():
        each.data.mul_(0.3 if each.dim() > 1 else 0.0)
    batches = [(torch.randn(ROWS, WIDTH), torch.randint(3, (ROWS,))) for _ in range(2)]
    training = Training(net, batches, None, torch.optim.SGD(net.parameters(), 1e-7))
    with training.untouched():
        seen = passage_of(training, batches)
    depth = passed_by.examine(
        training, replace(seen, reach=(-4.5, -4.5), allowed=1.0), batches, steps, going=lambda: True
    )
    depth = replace(depth, tried=(), plain=None if depth.plain is None else replace(depth.plain, after=(0.9, 0.9)))
    assert [each.kind for each in passed_by.of_depth(depth)] == [kind]


class _Alike(nn.Module):
    """What every example gets is the mean of all, for so many calls in training, as of a codebook that begins anew."""

    calls: Tensor

    def __init__(self, most: int) -> None:
        super().__init__()
        self.first, self.last, self.most = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3), most
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.training:
            self.calls += 1
        return self.last(x.mean(0, keepdim=True).expand_as(x) if self.calls < self.most else x)


@pytest.mark.parametrize(("most", "told"), [(16, False), (10**6, True)])
def test_examples_that_are_alike_for_some_steps_are_looked_at_again(most: int, told: bool) -> None:
    net = _Alike(most)
    batches = [(x := torch.randn(ROWS, 8), (x @ torch.randn(8, 3)).argmax(1)) for _ in range(6)]
    training = Training(net, batches, None, torch.optim.Adam(net.parameters(), 1e-2))
    answer = depthgauge.check(training, only=["signal"]).answers["signal"]
    assert ("collapse" in {each.kind for each in answer.findings}) is told


def test_half_of_what_is_below_zero_is_no_saturation_of_a_line_that_begins_there() -> None:
    """ReLU6's lower end is ReLU's."""
    assert all(each.flat_share < 0.1 for each in _units(nn.ReLU6(), 0.1).layers.values())
    assert all(each.flat_share > 0.3 for each in _units(nn.ReLU6(), 30.0).layers.values())


@pytest.mark.parametrize(
    ("share", "moved", "slow"), [(0.4, 0.07, True), (0.4, 0.2, False), (0.2, 0.2, True), (0.48, 0.03, False)]
)
def test_a_rate_is_too_small_by_what_it_falls_and_what_it_moves(share: float, moved: float, slow: bool) -> None:
    """Late in 400 steps; less of a larger rate's fall is enough where weights hardly move than elsewhere."""
    late = Branches({1.0: (2 - share,) * 400, 30.0: (1.0,) * 400}, 400, 2.0)
    assert Longer(0.3, moved, True, late).slow is slow


@pytest.mark.parametrize(
    ("middle", "told"),
    [(nn.LayerNorm(WIDTH), False), (nn.BatchNorm1d(WIDTH), False), (nn.Tanh(), True), (nn.ReLU(), True)],
)
def test_large_inputs_are_let_pass_where_a_normalization_takes_their_size_away(middle: nn.Module, told: bool) -> None:
    """And not where an activation that is flat for all of them hides it."""
    net = nn.Sequential(nn.Linear(8, WIDTH), middle, nn.GELU(), nn.Linear(WIDTH, 3))
    batches = [(300 * torch.randn(ROWS, 8), torch.randint(3, (ROWS,))) for _ in range(6)]
    training = Training(net, batches, None, torch.optim.Adam(net.parameters(), 1e-2))
    answer = depthgauge.check(training, only=["data"]).answers["data"]
    assert ("unscaled_inputs" in {each.kind for each in answer.findings}) is told
