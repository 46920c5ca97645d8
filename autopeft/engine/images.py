"""Pictures as a model reads them: resized, cropped and normalised as its `preprocessor_config.json` says.

That is what the image processors of transformers do, with Pillow alone. Pixels are kept as bytes, three a pixel, and
normalised a batch at a time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autopeft.errors import DataError, EnvironmentProblem, ModelError

__all__ = ["ImageReader", "Pixels", "load_image_reader"]

PREPROCESSOR = "preprocessor_config.json"
_HALF = (0.5, 0.5, 0.5)
_BILINEAR = 2


@dataclass(frozen=True)
class Pixels:
    """The images of a split."""

    values: Tensor
    """Bytes `(n, 3, H, W)`."""
    scale: Tensor
    """What bytes are multiplied with, by channel `(3, 1, 1)`."""
    shift: Tensor
    """What is added then `(3, 1, 1)`."""

    def of(self, rows: Tensor) -> Tensor:
        """`pixel_values` of these rows `(B, 3, H, W)`."""
        return self.values[rows].float() * self.scale + self.shift


@dataclass(frozen=True)
class ImageReader:
    """How one model wants its images."""

    height: int
    width: int
    shortest_edge: int | None = None
    """Resize to this shorter edge, and crop; None: resize to height and width."""
    resample: int = _BILINEAR
    """Pillow's number of a filter."""
    mean: tuple[float, ...] = _HALF
    deviation: tuple[float, ...] = _HALF
    factor: float = 1 / 255

    def pixels(self, paths: tuple[str, ...]) -> Pixels:
        """
        Raises:
            DataError: a file is no image that can be read; names it.
        """
        values = torch.empty(len(paths), 3, self.height, self.width, dtype=torch.uint8)
        for row, path in enumerate(paths):
            values[row] = self._read(path)
        mean, deviation = torch.tensor(self.mean), torch.tensor(self.deviation)
        return Pixels(values, (self.factor / deviation).view(3, 1, 1), (-mean / deviation).view(3, 1, 1))

    def _read(self, path: str) -> Tensor:
        import numpy as np

        image = read_image(path)
        if self.shortest_edge is not None:
            share = self.shortest_edge / min(image.size)
            width, height = (max(round(edge * share), 1) for edge in image.size)
            left, top = (width - self.width) // 2, (height - self.height) // 2
            image = image.resize((width, height), self.resample)
            image = image.crop((left, top, left + self.width, top + self.height))
        else:
            image = image.resize((self.width, self.height), self.resample)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_image(path: str) -> Any:
    """The image in RGB.

    Raises:
        DataError: the file is no image that can be read; names it.
        EnvironmentProblem: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentProblem("images: Pillow is not installed. Try: pip install 'autopeft[tasks]'") from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # what decoders raise for files that are none
        raise DataError(f"{path}: not an image that can be read ({type(error).__name__}: {error}).") from error


def load_image_reader(name: str, folder: Path, config: Any) -> ImageReader:
    """What `preprocessor_config.json` says; without one, the config's size and a mean and deviation of one half.

    Raises:
        ModelError: it cannot be read, or the model's config has no image size.
    """
    try:
        data = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
    except FileNotFoundError:
        data = {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {PREPROCESSOR} cannot be read: {error}") from error
    size = _size(data.get("size", getattr(config, "image_size", None)))
    crop = _size(data.get("crop_size")) if data.get("do_center_crop") else {}
    edge = size.get("shortest_edge")
    height = crop.get("height") or size.get("height") or edge
    width = crop.get("width") or size.get("width") or edge
    if not (isinstance(height, int) and isinstance(width, int)):
        raise ModelError(f"{name}: neither its config nor {PREPROCESSOR} says how large its images are")
    is_normalised = data.get("do_normalize", True)
    return ImageReader(
        height,
        width,
        edge,
        int(data.get("resample", _BILINEAR)),
        tuple(data.get("image_mean", _HALF)) if is_normalised else (0.0, 0.0, 0.0),
        tuple(data.get("image_std", _HALF)) if is_normalised else (1.0, 1.0, 1.0),
        float(data.get("rescale_factor", 1 / 255)) if data.get("do_rescale", True) else 1.0,
    )


def _size(given: Any) -> dict[str, int]:
    """`{height, width}` or `{shortest_edge}` of a number, a pair or a mapping."""
    match given:
        case int():
            return {"height": given, "width": given}
        case [int() as height, int() as width]:
            return {"height": height, "width": width}
        case dict():
            return {key: value for key, value in given.items() if isinstance(value, int)}
        case _:
            return {}
