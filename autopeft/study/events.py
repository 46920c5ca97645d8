"""The run's diary, `events.jsonl`: one JSON object a line, on the disk before the next step is taken.

A second source of truth beside the database. A line counts once its end of line is written: what a kill leaves behind
the last one is a torn line, which readers skip and the next append removes.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autopeft.errors import EnvironmentProblem, StudyCorruptError
from autopeft.resources import sync_folder
from autopeft.study.strict_json import parse

EVENTS_FILE = "events.jsonl"

Event = Mapping[str, Any]
"""`kind`, `time` (UTC, ISO 8601) and the fields of its kind."""


class EventLog:
    """Appends events to `path`; one writer at a time. The file is made by the first event."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._descriptor: int | None = None
        self._end = 0

    def append(self, kind: str, **fields: Any) -> None:
        """Write one event and wait until it is on the disk. Durations are the caller's: the clock may jump.

        Raises:
            EnvironmentProblem: the disk is full or the folder cannot be written; the file is as it was.
            ValueError: a number is NaN or infinite.
        """
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"time": moment, "kind": kind, **fields}
        line = (json.dumps(event, allow_nan=False, separators=(",", ":")) + "\n").encode("ascii")
        try:
            descriptor = self._open()
            _write(descriptor, line)
            os.fsync(descriptor)
            self._end += len(line)
        except OSError as error:
            self.close()  # the next append begins with a repair
            raise EnvironmentProblem(f"{self.path}: an event cannot be written: {error.strerror}") from error

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _open(self) -> int:
        if self._descriptor is None:
            is_new = not self.path.exists()
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            if is_new:
                sync_folder(self.path.parent)
            self._end = _end_of_whole_lines(self._descriptor)
        if os.fstat(self._descriptor).st_size > self._end:
            os.ftruncate(self._descriptor, self._end)
        return self._descriptor


def _write(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def _end_of_whole_lines(descriptor: int, block: int = 1 << 16) -> int:
    """Where the last line that has an end of line ends, searched backwards."""
    position = os.fstat(descriptor).st_size
    while position > 0:
        start = max(0, position - block)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def read(path: Path) -> Iterator[Event]:
    """Every whole event in order; none where there is no file. A torn last line is skipped.

    Raises:
        StudyCorruptError: a line is not an event; names it by number.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise EnvironmentProblem(f"{path}: the events cannot be read: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield _event(line, path, number)


def _event(line: bytes, path: Path, number: int) -> Event:
    try:
        event = parse(line.decode("utf-8"))
    except ValueError as error:
        raise StudyCorruptError(
            f"{path}:{number}: not an event: {error}. Where study.db is whole, move {path.name} away: it is made anew."
        ) from error
    if not (isinstance(event, dict) and isinstance(event.get("kind"), str)):
        raise StudyCorruptError(f"{path}:{number}: not an event: a mapping with 'kind' is needed")
    return event
