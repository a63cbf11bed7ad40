"""Numbers as people read them."""

from __future__ import annotations


def short(value: float | None) -> str:
    """Return about three digits, in six characters where a value lets them; empty for None."""
    if value is None:
        return ""
    size = abs(value)
    if size == 0 or 0.001 <= size < 1:
        return f"{value:.4f}" if size else "0"
    if 1 <= size < 999.5:
        return f"{value:.3g}"
    return f"{value:.0f}" if 999.5 <= size < 1e6 else f"{value:.0e}"


def percent(rate: float | None) -> str:
    """Return a rate in per cent; a dash without one."""
    return "-" if rate is None else f"{100 * rate:.1f}"
