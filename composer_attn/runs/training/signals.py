"""Stop a run by signal: the first one makes it save and stop, a second one ends it at once."""

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
    """The signals that this rank received, and the decision that all ranks share."""

    def __init__(self) -> None:
        self._received = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Record a signal, and restore the default handler, so that a second one ends the run."""
        self._received = number
        # The default handler works even while this process waits for ranks that have exited.
        signal.signal(number, signal.SIG_DFL)
        if dist.get_global_rank() == 0:
            name = signal.Signals(number).name
            print(
                f"\ncomposer-attn: {name}: saving after this batch; repeat to stop immediately",
                file=sys.stderr,
                flush=True,
            )

    def agreed(self, device: Device) -> signal.Signals | None:
        """Return the signal that any rank received; equal on all ranks after the same batch."""
        received = torch.tensor([self._received])
        if dist.get_world_size() > 1:
            received = device.tensor_to_device(received)
            dist.all_reduce(received, "MAX")
        return signal.Signals(number) if (number := int(received)) else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals within the context; has no effect outside the main thread."""
        before: dict[signal.Signals, Any] = {}  # handlers: functions, or numbers such as SIG_DFL
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
