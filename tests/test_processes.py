"""Several processes train one run of networks: the loss is that of one process, and only the main one writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, draw, run_script
from script_server import CAN_FORK

STEPS = 6
# Does what torch.distributed.run does: starts train.py with the variables that tell each process its number.
FORK_RANKS = """
import os, runpy, sys
processes, port = int(sys.argv[1]), sys.argv[2]
sys.argv = ["train.py", *sys.argv[4:]]
os.environ.pop("PYTEST_XDIST_WORKER", None)
children = []
for rank in range(processes):
    child = os.fork()
    if child == 0:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if processes > 1:
            os.environ.update({name: str(value) for name, value in (names | addresses).items()})
        runpy.run_path("train.py", run_name="__main__")
        os._exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(map(abs, codes)))
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("clip"), width=64, height=36, frames=5)


def write_config(folder, clip, **changes):
    """Write a config with tiny networks for a clip, and return its path."""
    settings = {
        "data_folder": str(clip),
        "results_folder_name": str(folder / "results"),
        "resx": 64,
        "resy": None,
        "iters_num": STEPS,
        "log_every": 1,
        "samples_batch": 320,
        "evaluate_every": 10**6,
        "pretrain_iter_number": 1,
    } | changes
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    return path


def start(processes, *arguments):
    """Start train.py in a number of processes."""
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    launch += [] if processes == 1 else [f"--master_port={find_port()}", "--master_addr=127.0.0.1"]
    command = [sys.executable, *launch, str(ROOT / "train.py"), *map(str, arguments), "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_XDIST_WORKER"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def find_port():
    """Return the number of a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_launched(processes, config):
    """Train in a number of processes, as users start them, to the end."""
    process = start(processes, config, "--no_evaluation")
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_forked(processes, config, folder):
    """Train to the end in processes that have loaded torch already, which saves more than half a minute."""
    script = folder / "fork_ranks.py"
    script.write_text(FORK_RANKS)
    return run_script(script, processes, find_port(), "--", config, "--no_evaluation", "--device", "cpu")


def read_losses(folder):
    """Return the rows of the log of the only run in a folder."""
    (run,) = (folder / "results").iterdir()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["tiles", "published"])
def test_two_processes_have_the_losses_of_one(clip, tmp_path, sampling):
    rows = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        config = write_config(folder, clip, sampling=sampling)
        done = run_forked(count, config, folder) if CAN_FORK else run_launched(count, config)
        assert done.returncode == 0, done.stderr
        rows.append(read_losses(folder))
    assert len(rows[0]) == len(rows[1]) == STEPS
    for one, two in zip(*rows, strict=True):
        assert two == pytest.approx(one, rel=2e-4)


@pytest.mark.slow
def test_a_lost_process_leaves_a_checkpoint_from_which_the_run_continues(clip, tmp_path):
    config = write_config(tmp_path, clip, iters_num=10**6, checkpoint_every=10**6)
    process = start(2, config, "--no_evaluation")
    log = wait_for_log(tmp_path)
    (helper,) = [pid for pid in find_workers(process.pid) if "RANK=1" in read_environment(pid)]
    os.kill(helper, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "another process of the run ended" in errors or "stopped;" in errors
    saved = len(log.read_text().splitlines())
    run = log.parent
    settings = json.loads((run / "config.json").read_text()) | {"iters_num": saved + 3}
    (run / "config.json").write_text(json.dumps(settings))
    again = start(1, "--resume", run, "--no_evaluation")
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "finished after iteration" in output


def wait_for_log(folder):
    """Return the log of the only run in a folder, as soon as it has some rows."""
    for _ in range(600):
        logs = list(folder.glob("results/*/log.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) > 2:
            return logs[0]
        time.sleep(0.1)
    raise AssertionError("the run has not begun within a minute")


def find_workers(launcher):
    """Return the process numbers of the children of a launcher."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in children.stdout.split()]


def read_environment(pid):
    """Return the variables of a process, one per element."""
    return Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")


def test_several_processes_are_refused_for_grids(clip, tmp_path):
    process = start(2, write_config(tmp_path, clip, representation="grid"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("representation grid is trained by one") == 1
    assert not (tmp_path / "results").exists()
