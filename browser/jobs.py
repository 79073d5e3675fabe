"""Long work beside the page: a script in a process of its own, with its progress, and a way to stop it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread, Timer

from command_line import UserError

SCRIPTS = Path(__file__).resolve().parent.parent  # Folder of the scripts.
PROGRESS = re.compile(r"^(?P<name>[^:]*): +(?P<percent>\d+)%\|")  # a line of a progress bar
HEED_S = 10.0  # Seconds in which a script has to heed Ctrl-C.
KEPT_LINES = 40  # Last lines of a script that are kept, for its errors.


class Job:
    """A script that runs in a process of its own."""

    def __init__(
        self,
        kind: str,
        arguments: list[str],
        on_change: Callable[["Job"], None],
        finish: Callable[["Job"], dict[str, object]],
    ):
        """Start a script.

        kind: what it does, for the page. on_change: called in another thread with each change. finish: called there
        when the script has succeeded; the job runs until it has returned what the page is told.
        """
        self.kind, self.on_change, self.finish = kind, on_change, finish
        self.result: dict[str, object] = {}  # what the page is told when the job is done
        self.state = "running"  # then "done", "failed" or "cancelled"
        self.progress, self.stage = 0.0, "starting"  # 0 to 1; what is done now
        self.lines: list[str] = []  # what the script printed, without its progress bars
        self.is_cancelled = False
        environment = os.environ | {"TQDM_MININTERVAL": "0.3", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        windows = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {}  # type: ignore[attr-defined]
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=Path.cwd(),
            start_new_session=True,  # A Ctrl-C in the terminal reaches it once, through `cancel`.
            **windows,
        )
        self.thread = Thread(target=self.follow, daemon=True)
        self.thread.start()

    def describe(self) -> dict[str, object]:
        """Return the state for the page."""
        message = self.lines[-1] if self.lines else ""
        return {
            "job": self.kind,
            "state": self.state,
            "progress": self.progress,
            "stage": self.stage,
            "message": message,
            **self.result,
        }

    def follow(self) -> None:
        """Read what the script prints until it ends."""
        assert self.process.stdout is not None
        text = ""
        while chunk := os.read(self.process.stdout.fileno(), 4096):
            *lines, text = re.split(r"[\r\n]", text + chunk.decode("utf-8", "replace"))
            for line in lines:
                self.take_line(line)
        self.take_line(text)
        code = self.process.wait()
        state = "cancelled" if self.is_cancelled else "done" if code == 0 else "failed"
        if state == "done":
            try:
                self.result = self.finish(self)
            except (UserError, OSError, RuntimeError) as error:
                self.lines.append(str(error))
                state = "failed"
        self.state = state
        self.on_change(self)

    def take_line(self, line: str) -> None:
        """Keep a line that the script printed, or the progress that it tells."""
        if (bar := PROGRESS.match(line)) is not None:
            self.stage, self.progress = bar["name"].strip(), int(bar["percent"]) / 100
            self.on_change(self)
        elif line.strip():
            self.lines = [*self.lines, line.strip()][-KEPT_LINES:]

    def cancel(self) -> None:
        """Stop the script as Ctrl-C does, so that it removes unfinished files. On Windows it ends at once."""
        self.is_cancelled = True
        if self.process.poll() is None:
            self.process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)  # type: ignore[attr-defined]
            # In the background of a shell script Ctrl-C is ignored; then it is ended after a while.
            end = Timer(HEED_S, self.process.terminate)
            end.daemon = True
            end.start()
