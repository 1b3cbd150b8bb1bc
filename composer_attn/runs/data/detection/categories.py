"""Classes of objects: their names, their ids in an annotation file, their labels in a network."""

from collections.abc import Iterable
from dataclasses import dataclass

from composer_attn.errors import ArgumentError, first_few

# What torchvision calls the outputs of its networks for ids that COCO does not use.
UNUSED = "N/A"


@dataclass(frozen=True)
class Categories:
    """The classes of objects in a dataset.

    Label 0 is the background; the labels of objects follow from 1 on, in the order of the ids, or
    are the ids themselves.

    Attributes:
        ids: the ids in the annotation file, ascending; they may have gaps.
        names: the names of the classes with these ids.
        as_labels: whether the ids are the labels, gaps included, as in the networks that
            torchvision has trained on COCO: 90 labels for 80 classes.

    Example:
        >>> animals = Categories((3, 7), ("cat", "dog"))
        >>> animals.label_of(7), animals.id_of(2), animals.classes
        (2, 7, ('cat', 'dog'))
        >>> Categories((1, 3), ("cat", "dog"), as_labels=True).classes
        ('cat', 'N/A', 'dog')
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    as_labels: bool = False

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, str]], as_labels: bool = False) -> "Categories":
        """Sort pairs of an id and a name, and check them.

        Raises:
            ArgumentError: there is none, an id or a name occurs twice, or an id that is to be a
                label is not from 1 to 10,000.
        """
        found = sorted(pairs)
        ids, names = tuple(i for i, _ in found), tuple(name for _, name in found)
        twice = [str(v) for values in (ids, names) for v in {*values} if values.count(v) > 1]
        if not found or twice:
            problem = f"{first_few(twice)} twice" if twice else "no category"
            raise ArgumentError(
                f"the categories must have different ids and names; found {problem}"
            )
        if as_labels and not (ids[0] >= 1 and ids[-1] <= 10_000):
            raise ArgumentError(
                f"category_ids: true needs ids from 1 to 10,000; found {ids[0]} to {ids[-1]}"
            )
        return cls(ids, names, as_labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label from 1 on."""
        if not self.as_labels:
            return self.names
        named = dict(zip(self.ids, self.names, strict=True))
        return tuple(named.get(label, UNUSED) for label in range(1, self.ids[-1] + 1))

    def label_of(self, category_id: int) -> int | None:
        """Return the label of a category; ``None`` if there is no such category."""
        if category_id not in self.ids:
            return None
        return category_id if self.as_labels else self.ids.index(category_id) + 1

    def id_of(self, label: int) -> int:
        """Return the category of a label, as in a file of results for COCO's evaluation."""
        return label if self.as_labels else self.ids[label - 1]
