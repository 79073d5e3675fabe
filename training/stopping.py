"""What ends a run early: signals, and the time budget."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopSignal:
    """Handler of Ctrl-C (SIGINT) and SIGTERM.

    By default a signal raises KeyboardInterrupt at once. Inside `defer` it is only stored in `received`, so that an
    iteration is finished before the run stops.
    """

    def __init__(self) -> None:
        self.received: int | None = None  # number of the last signal
        self.is_deferred = False

    def handle(self, number: int, _frame: object) -> None:
        """Store the signal's number. Raises KeyboardInterrupt unless signals are deferred."""
        self.received = number
        if not self.is_deferred:
            raise KeyboardInterrupt

    @contextmanager
    def install(self) -> Iterator[None]:
        """Handle both signals inside the block, and restore the former handlers after it."""
        former = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Only store signals inside the block; the caller reads `received` after it."""
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal stopped: 128 plus the number of the signal."""
        return 128 + (self.received or signal.SIGINT)


class Stopwatch:
    """A clock of the seconds spent on loading and training. Evaluations and the time between two starts do not count.

    clock: a function that returns the current time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.earlier_seconds = 0.0  # of the run before it was resumed, and seconds that count as spent
        self.start_time = clock()

    @property
    def seconds(self) -> float:
        """The seconds so far, including those before the run was resumed."""
        return self.earlier_seconds + self.clock() - self.start_time

    def restore(self, seconds: float) -> None:
        """Add the seconds that a run took before it was resumed."""
        self.earlier_seconds += seconds

    def advance_to(self, seconds: float) -> None:
        """Count all seconds up to this number as spent."""
        self.earlier_seconds += max(0.0, seconds - self.seconds)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time that is spent in the block."""
        pause_start = self.clock()
        try:
            yield
        finally:
            self.start_time += self.clock() - pause_start
