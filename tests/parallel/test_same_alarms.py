"""No sound training is accused: false alarms among nets drawn by chance, counted."""

from __future__ import annotations

import nets_of_chance
import pytest

from depthgauge import parallel

pytestmark = pytest.mark.usefixtures("warm_ranks")


@pytest.mark.slow
@pytest.mark.alone
def test_sound_nets_of_chance_are_not_accused() -> None:
    """The first 300 of the thousand that docs/parallel.md counts."""
    outcome = parallel.launch(nets_of_chance.alarms, 300, ranks=2, limit=150, patience=60)
    assert outcome.well, outcome.why
    found = outcome.answers[0]
    assert [(number, why) for number, same, _, _, why in found if same is not True] == []
    assert sum(beyond for _, _, beyond, _, _ in found) <= 3  # of the band alone, before float64 is asked
    assert max(widest for _, _, _, widest, _ in found) > 0.05  # a band so wide that nothing comes near tells nothing
