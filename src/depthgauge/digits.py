"""Numbers as a terminal's sentences and tables have them: three digits, and no power of ten for what is large.

>>> three(0.012345), three(999.6), three(12345.6)
('0.0123', '1,000', '12,346')
"""

from __future__ import annotations

_WHOLE = 999.5, 1e15  # from here on as whole numbers, and up to where those are exact


def three(value: float) -> str:
    """Spell a number with three digits; one that rounds to 1,000 or more is whole."""
    low, high = _WHOLE
    return f"{value:,.0f}" if low <= abs(value) < high else f"{value:.3g}"
