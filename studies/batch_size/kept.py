"""The extent to which a rule of the learning rate keeps a loss curve, in words."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any


def reach(row: Mapping[Hashable, Any]) -> str:
    """Say up to which factor one start keeps the curve, and from which it does not."""
    share = "its tuned rate" if row["share"] == 1 else f"{row['share']:g} of it"
    kept = "" if row["kept_to"] == 1 else f"true up to {row['kept_to']} times the batch"
    lost = "" if math.isnan(row["broken_from"]) else f"false from {row['broken_from']:.0f} times"
    return f"{row['optimizer']} from {share}: {', '.join(filter(None, (kept, lost))) or 'undecided'}"


def sentence(row: Mapping[Hashable, Any]) -> str:
    """Say what the rule reaches from one start, and at which loss and rate it breaks the curve."""
    share = "the tuned rate" if row["share"] == 1 else f"{row['share']:g} of the tuned rate"
    kept = "at no factor" if row["kept_to"] == 1 else f"up to a factor of {row['kept_to']}"
    broken = "breaks it at none that was tried"
    if not math.isnan(row["broken_from"]):
        broken = (
            f"breaks it from {row['broken_from']:.0f} on ({row['loss_there']} loss at rate {row['rate_there']:.2g})"
        )
    return f"with {row['optimizer']} from {share} the {row['rule']} rule is shown to keep the curve {kept} and {broken}"
