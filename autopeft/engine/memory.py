"""Amounts of memory as users write and read them, and how much of it the activations of frozen layers may take."""

import re
from contextlib import suppress
from pathlib import Path

import psutil

from autopeft.errors import UsageError

_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_PATTERN = re.compile(rf"([0-9]{{1,15}}(?:\.[0-9]{{1,9}})?) ?({'|'.join(_UNITS)})", re.ASCII | re.IGNORECASE)
_SHARE = 4
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def parse_memory(option: str, text: str) -> int:
    """Bytes of `2GB`, `500MB`, `6GiB`, `0`.

    Raises:
        UsageError: another form.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(f"--{option}: {text[:40]!r} is not an amount of memory. Allowed: 2GB, 500MB, 6GiB, 0")
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    return int(float(match[1]) * units[match[2].lower()])


def amount(n_bytes: int) -> str:
    """For people: `5.23 GiB`, `812 MiB`."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def default_cache_memory() -> int:
    """A quarter of what the machine or its container has: of all memory, not of what is free just now, so that a study
    that goes on later takes the same."""
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no container, or one without a limit
        total = min(total, int(_CGROUP.read_text()))
    return total // _SHARE
