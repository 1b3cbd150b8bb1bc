"""The classes of a run, stored in its folder, as the data may be absent when it is used."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from composer.utils import dist

from composer_attn.runs.data import Source
from composer_attn.runs.training.checkpoint_saver import saving

FILE = "classes.json"


@dataclass(frozen=True)
class ClassNames:
    """The classes that a run was trained on.

    Attributes:
        num_classes: number of classes; labels are 0 to ``num_classes - 1``.
        classes: their names; empty if the data provide none.
    """

    num_classes: int
    classes: tuple[str, ...]


def write_class_names(folder: str | Path, source: Source) -> None:
    """Write ``classes.json``, on rank 0.

    Raises:
        SaveError: the folder cannot be written.
    """
    if dist.get_global_rank() == 0:
        path = Path(folder, FILE)
        names = ClassNames(source.num_classes, source.classes)
        with saving(path):
            path.write_text(json.dumps(asdict(names), indent=2) + "\n", encoding="utf-8")


def read_class_names(folder: str | Path) -> ClassNames | None:
    """Read ``classes.json``; return None if it is absent or incomplete."""
    try:
        values = json.loads(Path(folder, FILE).read_text(encoding="utf-8"))
        return ClassNames(int(values["num_classes"]), tuple(str(n) for n in values["classes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
