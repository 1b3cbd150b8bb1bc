"""Write small image datasets to a folder: real files, like a user's."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(label: int, number: int, size: tuple[int, int] = (40, 48)) -> Image.Image:
    """Draw a noisy picture whose brightest colour is its label's."""
    random = np.random.default_rng(1000 * label + number)
    pixels = random.integers(0, 100, (*size, 3), dtype=np.uint8)
    pixels[..., label % 3] += 150
    return Image.fromarray(pixels)


def write_image_folder(root: Path, classes: int = 3, images: int = 8) -> Path:
    """Write ``root/train`` and ``root/val`` in the layout of ImageNet; half as many to validate."""
    for split, count in (("train", images), ("val", images // 2)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                offset = number if split == "train" else images + number
                picture(label, offset).save(folder / f"{number}.jpg", quality=95)
    return root


def write_mds(root: Path, classes: int = 3, images: int = 8) -> Path:
    """Write ``root/train`` and ``root/val`` as shards of mosaicml-streaming."""
    from streaming import MDSWriter

    for split, count in (("train", images), ("val", images // 2)):
        columns = {"x": "pil", "y": "int"}
        with MDSWriter(out=str(root / split), columns=columns, size_limit=1 << 15) as out:
            for number in range(count):
                for label in range(classes):
                    out.write({"x": picture(label, number), "y": label})
    return root


def write_cifar10(root: Path, images: int = 8) -> Path:
    """Write files in the layout of CIFAR-10; the caller has to disable the checksums."""
    import pickle

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = random.integers(0, 256, (images, 3072), dtype=np.uint8)
        labels = [int(i) for i in random.integers(0, 10, images)]
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    names = [f"name{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return root


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Write a 16-bit PNG, ``(H, W)`` or ``(H, W, C)``; Pillow cannot write these in colour."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width, *channels = pixels.shape
    color = {(): 0, (2,): 4, (3,): 2, (4,): 6}[tuple(channels)]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path
