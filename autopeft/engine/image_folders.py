"""Folders of images: a sub-folder for each class, perhaps within `train`, `validation` and `test`."""

from collections.abc import Iterator
from pathlib import Path

from autopeft.engine.tables import LONGEST_PATH, Table, shown
from autopeft.errors import DataError

__all__ = ["SUFFIXES", "image_tables"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def image_tables(folder: Path) -> dict[str, Table]:
    """A table of paths and classes for each split, by the name of its folder; `train` where there are none.

    Empty where the folder has no images in sub-folders.

    Raises:
        DataError: images lie beside class folders, so that their class is not known.
    """
    if _has_classes(folder):
        return {"train": _table(folder)}
    return {split.name: _table(split) for split in _folders(folder) if _has_classes(split)}


def _has_classes(folder: Path) -> bool:
    return any(next(_images(of_class), None) is not None for of_class in _folders(folder))


def _table(folder: Path) -> Table:
    name = shown(folder, LONGEST_PATH)
    if (stray := next(_images(folder), None)) is not None:
        raise DataError(f"{name}: {shown(stray.name)} lies in no class folder; move it into one.")
    rows = [{"image": str(path), "label": of_class.name} for of_class in _folders(folder) for path in _images(of_class)]
    return Table(name, ("image", "label"), rows, range(1, len(rows) + 1), "image", holds_images=True)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file())
