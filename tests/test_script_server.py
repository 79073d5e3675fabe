"""The server that starts scripts for tests: a script must end in it as it does in an interpreter of its own."""

import os
import subprocess

import pytest
from script_server import CAN_FORK, ScriptServer

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="scripts are forked on Linux only")

SCRIPTS = {
    "prints": "import sys, os; print(sys.argv[1], os.getcwd(), os.environ['NAME']); print('err', file=sys.stderr)",
    "exits_with_text": "import sys; sys.exit('wrong')",
    "exits_with_code": "import sys; sys.exit(5)",
    "raises": "1 / 0",
    "is_killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "waits_for_threads": "import threading; threading.Timer(0.3, lambda: print('late')).start()",
    "never_ends": "import time; time.sleep(600)",
}


@pytest.fixture(scope="module")
def server():
    return ScriptServer(preloaded=())  # These scripts need nothing.


@pytest.fixture
def run(server, tmp_path):
    def run_text(name: str, *arguments: str, on: ScriptServer = server) -> subprocess.CompletedProcess:
        (tmp_path / f"{name}.py").write_text(SCRIPTS[name])
        return on.run([str(tmp_path / f"{name}.py"), *arguments], tmp_path, os.environ | {"NAME": "value"})

    return run_text


def test_a_script_gets_its_arguments_folder_and_environment(run, tmp_path):
    done = run("prints", "first")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"first {tmp_path} value\n", "err\n")
    assert "NAME" not in os.environ


@pytest.mark.parametrize(
    ("name", "code", "stderr"),
    [("exits_with_text", 1, "wrong\n"), ("exits_with_code", 5, ""), ("is_killed", -9, "")],
)
def test_a_script_has_the_exit_code_that_it_would_have_alone(run, name, code, stderr):
    done = run(name)
    assert (done.returncode, done.stderr) == (code, stderr)


def test_an_error_that_a_script_does_not_catch_is_printed(run):
    done = run("raises")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_the_output_of_threads_is_waited_for(run):
    assert run("waits_for_threads").stdout == "late\n"


@pytest.mark.slow
def test_a_script_that_never_ends_is_killed_and_the_next_one_runs(run):
    hasty = ScriptServer(preloaded=())
    assert run("exits_with_code", on=hasty).returncode == 5
    first, hasty.timeout_s = hasty.process, 1.0
    with pytest.raises(subprocess.TimeoutExpired):
        run("never_ends", on=hasty)
    assert first.poll() is not None
    hasty.timeout_s = 300.0
    assert run("exits_with_code", on=hasty).returncode == 5
    assert hasty.process is not first
