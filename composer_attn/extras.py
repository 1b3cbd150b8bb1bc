"""Say which extra to install where a library that it brings is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from composer_attn.errors import MissingExtraError

# By what is imported, the smallest extra that brings it.
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
    "streaming": "streaming",
    "timm": "timm",
    "safetensors": "safetensors",
    "sklearn": "demo",
    "onnxruntime": "export",
    "openvino": "openvino",
}


@contextmanager
def naming_the_extra(user: str, extra: str | None = None) -> Iterator[None]:
    """Turn the import error of a library that is not installed into one that names its extra.

    Args:
        user: what needs the library, as the message calls it.
        extra: the extra to name; by default the smallest one that brings the library.

    Raises:
        MissingExtraError: an import inside the ``with`` did not find what an extra brings.

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
