"""Sizes and times as people say them."""


def size(count: int) -> str:
    """``count`` bytes, in the unit that leaves a figure before the point."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}" if count < 100 * unit else f"{count / unit:.0f} {name}"
    return f"{count / 1e3:.0f} kB"


def span(seconds: float) -> str:
    """``seconds`` rounded, in minutes from 60 on."""
    whole = max(0, round(seconds))
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
