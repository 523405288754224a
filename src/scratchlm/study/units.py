"""Numbers come in, short text for people comes out: 12_345_678 -> "12.3 M", 161 s -> "2 min 41 s".

A number that is missing (None) or not finite (a run that diverged) becomes a word instead of an error.
"""

import math

MISSING = "not recorded"
"""What stands where a number is not known."""


def count(value: int | float | None) -> str:
    """A count with three digits and its unit: 950 -> "950", 12_345_678 -> "12.3 M"."""
    if value is None or not math.isfinite(value):
        return _not_a_number(value)
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:  # 999,500 is shown as 1.00 M and not as 1000 k
            return f"{_three_digits(value / limit)} {unit}"
    return f"{value:,.0f}"


def size(num_bytes: int | float | None) -> str:
    """A size in powers of 1024: 3_145_728 -> "3.00 MiB"."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return _not_a_number(num_bytes)
    value, units = float(num_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1023.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:,.0f} bytes" if units[0] == "bytes" else f"{_three_digits(value)} {units[0]}"


def duration(seconds: int | float | None) -> str:
    """A time in its two largest units: 161 -> "2 min 41 s", 7_384 -> "2 h 3 min"."""
    if seconds is None or not math.isfinite(seconds):
        return _not_a_number(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def decimal(value: int | float | None, places: int = 3) -> str:
    """A figure with a fixed number of places: 1.31415 -> "1.314"."""
    if value is None or not math.isfinite(value):
        return _not_a_number(value)
    return f"{value:,.{places}f}"


def percent(share: int | float | None) -> str:
    """A share between 0 and 1: 0.304 -> "30 %", 0.0123 -> "1.2 %"."""
    if share is None or not math.isfinite(share):
        return _not_a_number(share)
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    return f"{value:.1f} %" if 0 < value < 9.95 or 99 < value < 100 else f"{value:.0f} %"


def _three_digits(value: int | float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"


def _not_a_number(value: int | float | None) -> str:
    if value is None:
        return MISSING
    return "not a number" if math.isnan(value) else "infinite"
