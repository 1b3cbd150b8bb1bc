"""The figure that the runs of a task are compared by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """The metric that runs are compared by; a higher value is better.

    Attributes:
        name: its name among the metrics of the task's models, such as ``accuracy``.
        label: how it is written, such as ``mean IoU``.
        percent: whether it is written in percent, or else as a number.
        of_images: whether it is the share of images classified correctly, which has an interval of
            its own, that of the choice of images.
    """

    name: str
    label: str
    percent: bool = True
    of_images: bool = False

    @property
    def title(self) -> str:
        """The label as it begins a sentence."""
        return self.label[0].upper() + self.label[1:]

    @property
    def axis(self) -> str:
        """The label of an axis, with the unit."""
        return f"{self.label} (%)" if self.percent else self.label

    @property
    def scale(self) -> float:
        """The factor from its values to those on an axis."""
        return 100.0 if self.percent else 1.0

    def written(self, value: float) -> str:
        """Write a value.

        Example:
            >>> Headline("mean_iou", "mean IoU").written(0.7512)
            '75.12%'
        """
        return f"{value:.2%}" if self.percent else f"{value:.4f}"
