"""Check that all ranks of a run have the same config and versions."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version

from composer.utils import dist

from composer_attn import __version__
from composer_attn.errors import RanksError, first_few
from composer_attn.runs.config.schema import RunConfig

_PACKAGES = ("mosaicml", "torch", "torchvision")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the relevant packages."""
    installed = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "composer-attn": __version__} | installed


def check_ranks_agree(config: RunConfig) -> None:
    """Compare this rank's config and versions with those of all other ranks.

    Raises:
        RanksError: they differ; raised on every rank, listing the differences.
    """
    mine = _flat("", asdict(config)) | {f"version of {k}": v for k, v in versions().items()}
    everyone = dist.all_gather_object(mine)
    differing = [
        f"{key} is {first} on rank 0, {other} on rank {rank}"
        for rank, theirs in enumerate(everyone)
        for key in {**everyone[0], **theirs}
        if (first := everyone[0].get(key)) != (other := theirs.get(key))
    ]
    if differing:
        raise RanksError(f"the ranks do not agree: {first_few(differing, '; ')}")


def _flat(prefix: str, value: object) -> dict[str, str]:
    """Flatten a nested mapping to key paths and reprs, which every rank can read."""
    if isinstance(value, Mapping) and value:
        parts = (_flat(f"{prefix}.{key}" if prefix else str(key), v) for key, v in value.items())
        return {key: text for part in parts for key, text in part.items()}
    return {prefix: repr(value)}
