"""Report which extra to install if an optional library is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from composer_attn.errors import MissingExtraError

# Maps each imported package to the smallest extra that provides it.
_EXTRAS = {
    "composer": "composer",
    "numpy": "composer",
    "PIL": "runs",
    "omegaconf": "runs",
    "packaging": "runs",
    "rich": "runs",
    "torchmetrics": "runs",
    "torchvision": "runs",
    "typer": "runs",
    "yaml": "runs",
    "jinja2": "report",
    "matplotlib": "report",
    "scipy": "report",
    "streaming": "streaming",
    "timm": "timm",
    "safetensors": "safetensors",
    "captum": "heatmaps",
    "sklearn": "demo",
    "onnx": "quantize",
    "onnxruntime": "export",
    "openvino": "openvino",
    "faster_coco_eval": "detection",
    "nncf": "openvino",
}


@contextmanager
def naming_the_extra(user: str, extra: str | None = None) -> Iterator[None]:
    """Convert the import error of a missing library to one that names its extra.

    Args:
        user: what needs the library, for the message.
        extra: the extra to name; by default the smallest one that provides the library.

    Raises:
        MissingExtraError: an import inside the ``with`` block did not find a library of an extra.

    Example:
        >>> from composer_attn.extras import naming_the_extra
        >>> with naming_the_extra("this"):
        ...     raise ModuleNotFoundError(name="timm.layers")
        Traceback (most recent call last):
        composer_attn.errors.MissingExtraError: this needs timm: pip install 'composer-attn[timm]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            raise
        install = f"pip install 'composer-attn[{extra or _EXTRAS[library]}]'"
        raise MissingExtraError(f"{user} needs {library}: {install}", name=error.name) from None
