"""When a run ends: signals as a flag between steps, and the clock of its time budget."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignal:
    """Ctrl-C and SIGTERM as a flag that the loop reads between iterations; elsewhere they interrupt at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False

    def handle(self, number: int, _frame: object) -> None:
        """Signal handler: note the signal; interrupt unless the loop will look."""
        self.received = number
        if not self.deferred:
            raise KeyboardInterrupt

    @contextmanager
    def install(self) -> Iterator[None]:
        """Take over both signals inside the block."""
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Inside the block a signal only sets the flag, for the loop to read after it."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False

    @property
    def exit_code(self) -> int:
        return 128 + (self.received or signal.SIGINT)


class Stopwatch:
    """Seconds that loading and training took, over all sittings of a run; evaluating and pauses do not count."""

    def __init__(self) -> None:
        self.before, self.started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def restore(self, seconds: float) -> None:
        """Add what earlier sittings took."""
        self.before += seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens in the block does not count."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - started
