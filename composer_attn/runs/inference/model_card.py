"""The model card of an exported file: what is needed to use it, and how well it performs."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class ModelCard:
    """The card of an exported file, written beside it as JSON and as Markdown.

    Attributes:
        file: name of the exported file.
        format: ``onnx``, ``torch_export``, ...
        sha256: hashes of the file, and of the files stored with it, by name.
        run_name: name of the run that it was exported from.
        checkpoint: the file of its weights.
        model: the model section of the run's config, with its algorithms.
        classes: the name of each output.
        activation: the function from outputs to probabilities: ``softmax`` or ``sigmoid``.
        input: name, shape (the first dimension is the batch, of any size) and dtype.
        preprocessing: the transform from an image to such an input.
        evaluation: the data, the number of images, the accuracy of the network and of the file, and
            the share of images for which both name the same class, and the largest difference
            between their outputs.
        versions: versions of Python and of the relevant packages.
        licence: to be filled in by the distributor of the file.
        quantization: number of bits, of calibration images, accepted losses and the library;
            empty if the file has floats.
    """

    file: str
    format: str
    sha256: dict[str, str]
    run_name: str
    checkpoint: str
    model: dict[str, Any]
    classes: tuple[str, ...]
    activation: str
    input: dict[str, Any]
    preprocessing: Preprocessing
    evaluation: dict[str, Any]
    versions: dict[str, str]
    licence: str = ""
    quantization: dict[str, Any] = field(default_factory=dict)

    def write(self, exported: Path) -> None:
        """Write the JSON and the Markdown file beside the exported file."""
        paths = card_paths(exported)
        paths[0].write_text(self.as_json() + "\n", encoding="utf-8")
        paths[1].write_text(self.as_markdown(), encoding="utf-8")

    def as_json(self) -> str:
        """Return the card as one JSON document."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """Return a one-line result of the evaluation of the file."""
        tested = self.evaluation
        same = f"the same class for {tested['agreement']:.2%}; " if self.quantization else ""
        return (
            f"accuracy {tested['accuracy_after']:.2%} on {tested['samples']:,} images, the "
            f"network's {tested['accuracy_before']:.2%}; {same}outputs differ by up to "
            f"{tested['largest_difference']:.1e} of the largest"
        )

    def as_markdown(self) -> str:
        """Return the card as Markdown."""
        prepared, tested = self.preprocessing, self.evaluation
        shape = "x".join(str(side) for side in self.input["shape"])
        rows = {
            "file": f"`{self.file}` ({self.format})",
            "sha256": _flat(self.sha256),
            "licence": self.licence or "not given: fill in before passing the file on",
            "trained as": f"`{self.run_name}`, weights of `{self.checkpoint}`",
            "network": _flat(self.model),
            "input": f"`{self.input['name']}`: {shape}, {self.input['type']}, RGB, any batch size",
            "output": f"logits of {len(self.classes)} classes; {self.activation} gives "
            "probabilities",
            "preparation": prepared.refusal or _preparation(prepared),
            "evaluated on": f"{tested['samples']:,} images of {_flat(tested['dataset'])}",
            "accuracy before export": f"{tested['accuracy_before']:.2%}",
            "accuracy of this file": f"{tested['accuracy_after']:.2%}",
            "images with the same class": f"{tested['agreement']:.2%}",
            "largest difference of outputs": f"{tested['largest_difference']:.1e} of the largest "
            "output",
            "quantization": _flat(self.quantization) or "none: floats",
            "made with": ", ".join(f"{name} {v}" for name, v in self.versions.items()),
        }
        table = "".join(f"| {name} | {_cell(text)} |\n" for name, text in rows.items())
        classes = "".join(f"{index}. {_cell(name)}\n" for index, name in enumerate(self.classes))
        return f"# {_cell(self.run_name)}\n\n| | |\n|---|---|\n{table}\n## Classes\n\n{classes}"


def card_paths(exported: Path) -> tuple[Path, Path]:
    """Return the paths of the card of an exported file: JSON and Markdown."""
    return exported.with_name(f"{exported.name}.json"), exported.with_name(f"{exported.name}.md")


def read_card(exported: Path) -> ModelCard:
    """Read the card beside an exported file.

    Raises:
        ArgumentError: there is none, it cannot be read, or it belongs to another file.
    """
    path = card_paths(exported)[0]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["preprocessing"] = Preprocessing.from_json(values["preprocessing"])
        values["classes"] = tuple(str(name) for name in values["classes"])
        card = ModelCard(**values)
    except OSError as error:
        raise ArgumentError(
            f"there is no model card {path.name} next to {exported}, which says how to prepare an "
            f"image: composer-attn export writes both ({error.strerror})"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ArgumentError(f"{path} is not the model card of an exported file: {error}") from error
    _check_files(card, exported)
    return card


def _check_files(card: ModelCard, exported: Path) -> None:
    """Check that the files match the hashes in the card."""
    for name, expected in {exported.name: "", **card.sha256}.items():
        path = exported.with_name(Path(name).name)
        if not path.is_file():
            raise ArgumentError(f"there is no file {path}, which belongs to {exported}")
        if sha256_of(path) != expected:
            raise ArgumentError(f"{path} is not the file of its card: its SHA-256 differs")


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _preparation(steps: Preprocessing) -> str:
    enlarged = f", enlarged to {steps.size} (bilinear)" if steps.size != steps.crop else ""
    gray = "converted to grayscale, " if steps.gray else ""
    numbers = [", ".join(f"{value:g}" for value in part) for part in (steps.mean, steps.std)]
    return (
        f"{gray}shorter side to {steps.resize} pixels (bilinear, antialiased), central "
        f"{steps.crop}x{steps.crop}{enlarged}; values from 0 to 1, minus {numbers[0]}, divided "
        f"by {numbers[1]}"
    )


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
