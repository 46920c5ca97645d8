"""Where files are: the shipped YAML, the cache folder; and the one way in which files are written.

In a wheel the YAML lies in `autopeft/_shipped/`; in a checkout (editable install) beside the package.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autopeft.errors import UnknownNameError

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """The folder of shipped YAML: `search_spaces` or `trials`."""
    in_wheel = _PACKAGE / "_shipped" / folder
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / folder


def shipped_names(folder: str) -> tuple[str, ...]:
    """Names as users write them: `hybrid`, `glue/rte`; files that start with `_` are only included by others."""
    return tuple(sorted(_names(shipped(folder))))


def _names(root: Path) -> Iterator[str]:
    for path in root.rglob("*.yaml"):
        if not path.name.startswith("_"):
            yield path.relative_to(root).with_suffix("").as_posix()


def find_yaml(folder: str, name: str) -> Path:
    """The YAML file that `name` stands for: a path that exists, else a shipped name.

    Raises:
        UnknownNameError: neither; lists what is shipped and suggests the nearest.
    """
    path = Path(name).expanduser()
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path
    known = shipped_names(folder)
    if name in known:
        return shipped(folder) / f"{name}.yaml"
    kind = {"search_spaces": "search space", "trials": "recipe"}[folder]
    raise UnknownNameError(kind, name, known)


def cache_folder() -> Path:
    """`$AUTOPEFT_CACHE`, else `$XDG_CACHE_HOME/autopeft`, else `~/.cache/autopeft`; not created here."""
    if given := os.environ.get("AUTOPEFT_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "autopeft"


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a whole file or none: temporary file in the same folder, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; silently skipped where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
