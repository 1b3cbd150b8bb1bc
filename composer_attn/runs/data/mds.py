"""Shards of mosaicml-streaming, for datasets too large for a single machine."""

from typing import Any

from composer_attn.runs.data.images import (
    Normalize,
    build_transform,
    collate,
    to_rgb,
)
from composer_attn.runs.data.seeded import seeded
from composer_attn.runs.data.source import Source


def mds(
    local: str,
    augmentation: str,
    num_classes: int,
    remote: str | None = None,
    split: str | None = None,
    size: int = 224,
    resize: int = 256,
    image_column: str = "x",
    label_column: str = "y",
    cache_limit: str | None = None,
    mean: list | None = None,
    std: list | None = None,
) -> Source:
    """Stream images from MDS shards, downloaded on demand and cached in a local folder.

    Args:
        local: the folder of the shards, or the cache of those of ``remote``.
        augmentation: one of :data:`~composer_attn.runs.data.images.AUGMENTATIONS`.
        num_classes: labels are 0 to ``num_classes - 1``.
        remote: location of the shards: a path, ``s3://``, ``gs://``, ``oci://``, ...
        split: the subfolder of both, such as ``train``.
        size: height and width of the network's input, in pixels.
        resize: length to which the shorter side is resized before ``center_crop`` and
            ``resize_crop``, in pixels.
        image_column: name of the column with the images (encoded ``pil``, ``jpeg`` or ``png``).
        label_column: name of the column with the labels.
        cache_limit: maximum size of the cache, such as ``100gb``.
        mean: means for normalization, as for ``image_folder``.
        std: standard deviations for normalization.

    Raises:
        ImportError: mosaicml-streaming is not installed.
    """
    try:
        from streaming import StreamingDataset
    except ImportError as error:
        raise ImportError(
            "mds needs mosaicml-streaming: pip install 'composer-attn[streaming]'"
        ) from error
    transform, normalize = build_transform(augmentation, size, resize), Normalize.by(mean, std)

    class Images(StreamingDataset):
        """Decodes and augments; the base class handles order, ranks and resumption."""

        def __getitem__(self, sample_id: Any) -> tuple[Any, int]:
            sample = super().__getitem__(sample_id)
            with seeded(self.shuffle_seed, self.next_epoch, sample_id):
                image = transform(to_rgb(sample[image_column]))
            return image, int(sample[label_column])

    def build(batch_size: int, shuffle: bool, shuffle_seed: int) -> StreamingDataset:
        return Images(
            local=local,
            remote=remote,
            split=split,
            batch_size=batch_size,
            shuffle=shuffle,
            shuffle_seed=shuffle_seed,
            cache_limit=cache_limit,
        )

    return Source(
        build,
        num_classes=num_classes,
        image_shape=(3, size, size),
        collate=collate,
        device_transform=normalize,
        streams=True,
    )
