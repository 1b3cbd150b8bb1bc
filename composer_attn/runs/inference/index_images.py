"""Image files as networks for objects and pixels take them, and images of the indices they find."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from composer_attn.errors import ArgumentError, ComposerAttnError, first_few, first_line
from composer_attn.runs.data.images import to_rgb

_COLOURS = 256


def read_image(path: str | Path) -> Tensor:
    """Read an image file, ``(3, H, W)``, uint8.

    Raises:
        ArgumentError: it cannot be read as an image.
    """
    try:
        with Image.open(path) as file:
            return functional.pil_to_tensor(to_rgb(file))
    except ComposerAttnError as error:
        raise ArgumentError(f"{path} cannot be prepared: {error}") from error
    except Exception as error:  # of any type: the file may contain anything
        raise ArgumentError(f"{path} cannot be read as an image: {first_line(error)}") from error


class IndexImages:
    """Images of indices, with Pascal VOC's palette, which are written all at once.

    Args:
        folder: where to write ``NAME.png`` for each image; made if it does not exist.
        images: the image files that they belong to.

    Raises:
        ArgumentError: two images have the same name.
    """

    def __init__(self, folder: str | Path, images: Sequence[str | Path]):
        self.folder = Path(folder)
        self._content: dict[Path, bytes] = {}
        names = [Path(path).stem for path in images]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ArgumentError(f"several images would have the mask {first_few(twice)}.png")

    def add(self, image: str | Path, indices: np.ndarray) -> str:
        """Keep the indices ``(H, W)``, uint8, of an image; return the file they will be in."""
        path = self.folder / f"{Path(image).stem}.png"
        height, width = indices.shape
        picture = Image.frombytes("P", (width, height), np.ascontiguousarray(indices).tobytes())
        picture.putpalette(_PALETTE)
        file = io.BytesIO()
        picture.save(file, "png")
        self._content[path] = file.getvalue()
        return str(path)

    def write(self) -> None:
        """Write the files.

        Raises:
            ArgumentError: one cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, content in self._content.items():
                path.write_bytes(content)
        except OSError as error:
            raise ArgumentError(f"cannot write to {self.folder}: {first_line(error)}") from error


def _palette() -> list[int]:
    """Return VOC's colours: the bits of an index, in turn, are the high bits of the channels."""
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for index in range(_COLOURS)
        for channel in range(3)
    ]


_PALETTE = _palette()
