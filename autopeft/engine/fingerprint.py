"""A model's content in a few hex digits, to notice that a folder holds another model than it did."""

import hashlib
from pathlib import Path

from autopeft.engine.models import CONFIG, find_model

_SAMPLE_BYTES = 1 << 20


def fingerprint(name: str, revision: str | None = None) -> str:
    """Of the config, and of size, beginning, middle and end (1 MiB each) of every weight file.

    Reading billions of weights would take minutes; a retrained model differs in the samples too.

    Raises:
        ModelError: no such model, or no weights that are safe to read.
        EnvironmentProblem: the Python package that holds it is not installed.
    """
    folder = find_model(name, revision)
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        _sample(path, digest)
    return digest.hexdigest()


def _sample(path: Path, digest: "hashlib._Hash") -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in sorted({0, max(0, size // 2 - _SAMPLE_BYTES // 2), max(0, size - _SAMPLE_BYTES)}):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
