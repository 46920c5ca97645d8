"""Numbers and small tables as text; the same on a terminal and in a pipe."""

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def share(part: int, whole: int) -> str:
    """`0.4321%` with the digits that matter."""
    percent = 100 * part / whole
    return f"{percent:.2f}%" if percent >= 0.1 else f"{percent:.4f}%"


def big(number: int) -> str:
    """With thousands separators, from ten million on as a power: `5.45e+11`."""
    return f"{number:,}" if number < 10_000_000 else f"{number:.2e}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, numbers as they come, no lines around."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)
