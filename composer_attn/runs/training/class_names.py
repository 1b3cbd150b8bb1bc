"""The classes of a run, kept in its folder: the data may be elsewhere when it is used."""

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
        num_classes: labels are 0 to ``num_classes - 1``.
        classes: their names; empty where the data have none.
    """

    num_classes: int
    classes: tuple[str, ...]


def write_class_names(folder: str | Path, source: Source) -> None:
    """Write ``classes.json``, on rank 0.

    Raises:
        SaveError: the folder takes no more.
    """
    if dist.get_global_rank() == 0:
        path = Path(folder, FILE)
        names = ClassNames(source.num_classes, source.classes)
        with saving(path):
            path.write_text(json.dumps(asdict(names), indent=2) + "\n", encoding="utf-8")


def read_class_names(folder: str | Path) -> ClassNames | None:
    """Read ``classes.json``; None where there is none, or it is not whole."""
    try:
        values = json.loads(Path(folder, FILE).read_text(encoding="utf-8"))
        return ClassNames(int(values["num_classes"]), tuple(str(n) for n in values["classes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
