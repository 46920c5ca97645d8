"""Where activations lie: in the memory of one worker, or in files that all workers of a study map into their memory."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import psutil
import torch
from filelock import FileLock
from torch import Tensor

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and number format of an entry's tensors, by split."""

Entry = dict[str, Tensor]


class Store(Protocol):
    """Entries by name, the one that was not used for the longest time first."""

    def locked(self) -> AbstractContextManager[None]:
        """A context in which nobody else looks for what is there, or takes it away."""
        ...

    def filling(self) -> AbstractContextManager[None]:
        """A context in which nobody else fills entries."""
        ...

    def use(self, names: Iterable[str]) -> None:
        """From now on this worker uses these entries, there or not, and no others; nobody drops them."""
        ...

    def get(self, name: str, shapes: Shapes) -> Entry | None:
        """The entry, if it is there."""
        ...

    def new(self, name: str, shapes: Shapes) -> Entry:
        """Tensors to be filled, and given to `put`."""
        ...

    def put(self, name: str, entry: Entry) -> None: ...

    def droppable(self) -> Mapping[str, int]:
        """Bytes of the entries that nobody uses."""
        ...

    @property
    def n_bytes(self) -> int:
        """Of all entries."""
        ...

    def drop(self, name: str) -> None: ...


class MemoryStore:
    """In the memory of this process, on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._used: frozenset[str] = frozenset()

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    @contextmanager
    def filling(self) -> Iterator[None]:
        yield

    def use(self, names: Iterable[str]) -> None:
        self._used = frozenset(names)
        for name in self._used & self._entries.keys():
            self._entries.move_to_end(name)

    def get(self, name: str, shapes: Shapes) -> Entry | None:
        return self._entries.get(name)

    def new(self, name: str, shapes: Shapes) -> Entry:
        return {split: torch.empty(s, dtype=dtype, device=self._device) for split, (s, dtype) in shapes.items()}

    def put(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry

    def droppable(self) -> Mapping[str, int]:
        return {name: _n_bytes(entry) for name, entry in self._entries.items() if name not in self._used}

    @property
    def n_bytes(self) -> int:
        return sum(map(_n_bytes, self._entries.values()))

    def drop(self, name: str) -> None:
        del self._entries[name]


class FileStore:
    """In a folder of files, mapped into the memory of each worker: each page is there once for all of them.

    An entry is one file a split, under its final name once it is filled. A worker marks what it uses by empty files
    with its process id; marks and unfinished files of dead processes do not count.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._locks = {name: FileLock(folder / f"{name}.lock") for name in ("look", "fill")}
        self._open: dict[str, Entry] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        with self._locks["look"]:
            yield

    @contextmanager
    def filling(self) -> Iterator[None]:
        with self._locks["fill"]:
            yield

    def use(self, names: Iterable[str]) -> None:
        used = {_stem(name) for name in names}
        for mark in self._folder.glob(f"*.{os.getpid()}.used"):
            if mark.name.partition(".")[0] not in used:
                mark.unlink()
        for stem in used:
            (self._folder / f"{stem}.{os.getpid()}.used").touch()
        self._open = {name: entry for name, entry in self._open.items() if _stem(name) in used}

    def get(self, name: str, shapes: Shapes) -> Entry | None:
        if name not in self._open:
            paths = {split: self._path(name, split) for split in shapes}
            if not all(path.exists() for path in paths.values()):
                return None
            self._open[name] = {split: _map(paths[split], *shapes[split]) for split in shapes}
            for path in paths.values():
                os.utime(path)
        return self._open[name]

    def new(self, name: str, shapes: Shapes) -> Entry:
        entry = {}
        for split, (shape, dtype) in shapes.items():
            path = self._unfinished(name, split)
            with path.open("wb") as file:  # a full disk shows here, and not as a fault where the map is written to
                n_bytes = max(1, torch.Size(shape).numel() * dtype.itemsize)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
                else:
                    file.truncate(n_bytes)
            entry[split] = _map(path, shape, dtype)
        return entry

    def put(self, name: str, entry: Entry) -> None:
        for split in entry:
            self._unfinished(name, split).replace(self._path(name, split))
        self._open[name] = entry

    def droppable(self) -> Mapping[str, int]:
        used = set()
        for mark in self._folder.glob("*.used"):
            stem, pid, _ = mark.name.split(".")
            if psutil.pid_exists(int(pid)):
                used.add(stem)
        for path in self._folder.glob("*.part"):
            if not psutil.pid_exists(int(path.name.split(".")[-2])):
                path.unlink()
        found: dict[str, int] = {}
        for path in sorted(self._folder.glob("*.bin"), key=lambda path: path.stat().st_mtime):
            stem = path.name.partition(".")[0]
            if stem not in used:
                found[stem] = found.get(stem, 0) + path.stat().st_size
        return found

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for ending in ("bin", "part") for path in self._folder.glob(f"*.{ending}"))

    def drop(self, name: str) -> None:
        for path in self._folder.glob(f"{name}.*.bin"):
            path.unlink()

    def _path(self, name: str, split: str) -> Path:
        return self._folder / f"{_stem(name)}.{split}.bin"

    def _unfinished(self, name: str, split: str) -> Path:
        return self._folder / f"{_stem(name)}.{split}.{os.getpid()}.part"


def _stem(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    n = torch.Size(shape).numel()
    return torch.from_file(str(path), shared=True, size=n, dtype=dtype).view(shape)


def _n_bytes(entry: Entry) -> int:
    return sum(tensor.nbytes for tensor in entry.values())
