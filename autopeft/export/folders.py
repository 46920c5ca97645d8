"""Folders that appear whole: written beside their place, synced, then renamed into it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopeft.errors import EnvironmentProblem, ExportError
from autopeft.resources import sync_folder


@contextmanager
def whole_folder(target: Path, force: bool) -> Iterator[Path]:
    """A temporary folder that becomes `target` at the end of the block, or nothing if the block fails.

    Raises:
        ExportError: something is there and `force` is not given, or it is not a folder.
        EnvironmentProblem: the place cannot be written.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ExportError(f"{target}: is not a folder. Give another place with --out")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ExportError(f"{target}: exists already. Replace it with --force, or give another place with --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:80]}.", suffix=".tmp"))
    except OSError as error:
        raise EnvironmentProblem(f"{target}: cannot be written: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        sync_folder(temporary)
        _put_in_place(temporary, target)
    except OSError as error:
        raise EnvironmentProblem(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path) -> None:
    old = temporary.with_suffix(".old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
