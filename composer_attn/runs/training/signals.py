"""Ask a run to stop: a first signal lets it save where it is, a second one ends it at once."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from composer.devices import Device
from composer.utils import dist

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """The signals that this rank received, and what all ranks make of them together."""

    def __init__(self) -> None:
        self._received = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, and leave the next one of its kind to the system, which ends the run."""
        self._received = number
        # The system's own handler works even where this process waits for ranks that are gone.
        signal.signal(number, signal.SIG_DFL)
        if dist.get_global_rank() == 0:
            name = signal.Signals(number).name
            print(
                f"\ncomposer-attn: {name}: saving after this batch; once more to stop at once",
                file=sys.stderr,
                flush=True,
            )

    def agreed(self, device: Device) -> signal.Signals | None:
        """Return the signal that any rank received; on all ranks the same, after the same batch."""
        received = torch.tensor([self._received])
        if dist.get_world_size() > 1:
            received = device.tensor_to_device(received)
            dist.all_reduce(received, "MAX")
        return signal.Signals(number) if (number := int(received)) else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals meanwhile; outside of the main thread there are none to receive."""
        before: dict[signal.Signals, Any] = {}  # functions, or numbers that stand for one
        try:
            for number in _SIGNALS:
                before[number] = signal.signal(number, self.receive)
        except ValueError:  # not the main thread
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
