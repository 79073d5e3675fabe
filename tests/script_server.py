"""Start scripts for tests in processes of their own that have loaded torch and the project's modules already.

Loading these takes more time than most scripts need for a tiny clip. On Linux, a server loads them once for each worker
of the tests, and forks for each script; elsewhere, and for `-c` and `-m`, every script is a new interpreter.

A forked script differs from a new interpreter in what has been loaded: modules are imported already, and libraries have
read their settings from the environment of the server. The whole way of a user (tests/test_benchmark.py) and runs that
are killed (tests/test_training.py, tests/test_processes.py) start new interpreters.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300
CAN_FORK = sys.platform == "linux"
# What the server loads. As in all scripts, command_line comes first: its settings of the process come before NumPy.
PRELOADED = (
    "command_line",
    "torch",
    "torch._inductor",  # which torch.use_deterministic_algorithms loads
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
    "training.runs",
    "preprocessing.masks",
    "preprocessing.flow",
    "preprocessing.extract",
    "export.atlas",
    "export.layers",
    "editing.render_edits",
)


class ScriptServer:
    """The server process of one worker; it starts with the first script, and ends with the worker."""

    def __init__(self, preloaded: tuple[str, ...] = PRELOADED) -> None:
        """preloaded: the modules that scripts find loaded."""
        self.preloaded = preloaded
        self.timeout_s: float = TIMEOUT_S
        self.process: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a script with its arguments to its end; return its exit code and what it printed."""
        if self.process is None or self.process.poll() is not None:
            self.process = self.start()
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
            request = {"arguments": arguments, "cwd": str(cwd), "environment": environment}
            answer = self.ask(request | {"stdout": str(stdout), "stderr": str(stderr)})
            return subprocess.CompletedProcess(arguments, answer, stdout.read_text(), stderr.read_text())

    def start(self) -> "subprocess.Popen[str]":
        """Start the server."""
        process = subprocess.Popen(
            [sys.executable, __file__, *self.preloaded],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a script that does not end can be killed with it
        )
        atexit.register(stop, process)
        return process

    def ask(self, request: dict[str, Any]) -> int:
        """Send a request to the server; return the exit code of the script.

        Raises TimeoutExpired, and RuntimeError if the server ends. It is killed if the script does not come to its end.
        """
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        answer = ""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            if not select.select([self.process.stdout], [], [], self.timeout_s)[0]:
                raise subprocess.TimeoutExpired(request["arguments"], self.timeout_s)
            answer = self.process.stdout.readline()
        finally:
            if not answer:
                stop(self.process)
        if not answer:
            raise RuntimeError("the server of scripts ended before the script; see what it printed above")
        return int(answer)


def stop(process: "subprocess.Popen[str]") -> None:
    """Kill a server and its script, if they run."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def serve() -> None:
    """Fork for each request that is a line of the standard input, and print the exit codes, until the input ends."""
    sys.path[0] = str(ROOT)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become_script(**request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become_script(arguments: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> NoReturn:
    """Run a script in this process, and end the process."""
    for path, descriptor in ((os.devnull, 0), (stdout, 1), (stderr, 2)):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(path, flags, 0o600), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    script = Path(arguments[0]).resolve()
    sys.argv = arguments
    sys.path[0] = str(script.parent)
    sys.path.insert(1, str(ROOT))
    exit_code = run_as_main(script)
    # Python has no public functions for this part of its end: it waits for threads, then calls what is registered.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # Python would take a second to take all loaded libraries apart.


def run_as_main(script: Path) -> int:
    """Run a script to its end; return its exit code, and print what Python prints for errors that it does not catch."""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Exception, KeyboardInterrupt):  # noqa: BLE001  # as at the top of an interpreter
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
