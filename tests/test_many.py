"""unwrap_many.py: many clips side by side, what happens to those that fail or are interrupted, and the table."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, last_line, run_script

import media
import unwrap_many
from batches import clip_job
from batches.clip_job import DONE, FAILED, read_state, run_clip
from batches.engines import check_answers, run_locally, run_on_ray, write_slurm_script
from batches.manifest import COLUMNS, INPUT, NAME, ClipTask, read_tasks
from batches.table import write_tables
from command_line import UserError
from scenes.catalogue import SCENES
from unwrap_video import make_unwrap_parser

QUICK = ("--method=motion", "--flow_method=dis", "--time_budget=1")
# Stands for unwrap_video.py: it finds what to do in the file that it is given, and leaves what an evaluation leaves.
STAND_IN = """
import json, os, pathlib, signal, sys, time
results = pathlib.Path([each for each in sys.argv if each.startswith("--results_folder=")][0].split("=", 1)[1])
results.parent.joinpath("begun").open("a").write("begun\\n")
begun = len(results.parent.joinpath("begun").read_text().split())
what = pathlib.Path(sys.argv[1]).read_text()
if what == "crash once" and begun == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wrong":
    print("error: no video", file=sys.stderr)
    sys.exit(2)
if what == "slow":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
folder = results / "run" / "000001"
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.json").write_text(json.dumps({"psnr": 30.5}))
print("done")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder for clips, which are unwrapped by the stand-in."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "unwrap_video.py").write_text(STAND_IN)
    monkeypatch.setattr(clip_job, "ROOT", tmp_path / "scripts")
    return tmp_path


def make_clips(folder: Path, **contents: str) -> list[ClipTask]:
    for name, what in contents.items():
        (folder / f"{name}.mp4").write_text(what)
    return [ClipTask(name, folder / f"{name}.mp4", ()) for name in contents]


# the list of clips


def test_columns_are_the_flags_of_unwrap_video():
    flags = {name for action in make_unwrap_parser()._actions for name in action.option_strings}
    left_out = {"-h", "--help", "--name", "--data_folder", "--results_folder"}
    assert {f"--{column}" for column in COLUMNS if column not in (INPUT, NAME)} == flags - left_out


def test_a_manifest_gives_each_clip_its_flags(tmp_path):
    make_clips(tmp_path, swan="", dog="")
    manifest = tmp_path / "clips.csv"
    manifest.write_text(
        'input,name,class_name,point,allow_cuts,masks\nswan.mp4,,bird,"1,2,0;3,4,5",yes,\ndog.mp4,hound,,,no,m\n'
    )
    swan, dog = read_tasks(manifest, ["time_budget=60", "class_name=dog"])
    assert (swan.name, swan.source) == ("swan", tmp_path / "swan.mp4")
    assert set(swan.flags) == {
        *("--time_budget=60", "--class_name=bird", "--point=1,2,0", "--point=3,4,5", "--allow_cuts")
    }
    assert dog.name == "hound"
    assert set(dog.flags) == {"--time_budget=60", "--class_name=dog", f"--masks={tmp_path / 'm'}"}


def test_a_folder_gives_its_videos_and_folders_of_frames(tmp_path):
    make_clips(tmp_path, swan="")
    for name in ("bear", "bear_flow", "empty"):
        (tmp_path / name).mkdir()
    for name in ("bear", "bear_flow"):
        media.write_png(tmp_path / name / "00000.png", SCENES["pan"](32, 24, 2).frame(0).rgb)
    assert [task.name for task in read_tasks(tmp_path)] == ["bear", "swan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video\nswan.mp4\n", "has no column input"),
        ("input,colour\nswan.mp4,red\n", "unknown column 'colour'"),
        ("input\nswan.mp4\nswan.mp4\n", "two clips are named swan"),
        ("input\nmissing.mp4\n", "line 2: .*no such file or folder"),
        ("input,name\nswan.mp4,../swan\n", "is no name of a folder"),
        ("input,name\nswan.mp4\n", "line 2: has not as many cells"),
        ("input\n", "holds no clips"),
        ("input,allow_cuts\nswan.mp4,maybe\n", "expected yes or no"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_explained(tmp_path, text, message):
    make_clips(tmp_path, swan="")
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_tasks(tmp_path / "clips.csv")


@pytest.mark.parametrize("flags", [("--workers=0",), ("--retries=-1",), ("--set=colour=red",), ("--slurm", "--only=1")])
def test_wrong_flags_end_in_one_line(tmp_path, flags):
    make_clips(tmp_path, swan="")
    done = run_script("unwrap_many.py", str(tmp_path), f"--output_folder={tmp_path / 'out'}", *flags)
    assert done.returncode == 2
    assert last_line(done.stderr).startswith("error: --")


# clips that fail or are interrupted


def test_a_clip_that_crashes_is_tried_again_and_one_that_fails_stops_nobody(stand_in):
    tasks = make_clips(stand_in, good="", crash="crash once", wrong="wrong")
    results = {result.name: result for result in run_locally(tasks, stand_in / "out", 2, 1, retries=1)}
    assert {name: (result.status, result.attempts) for name, result in results.items()} == {
        "good": (DONE, 1), "crash": (DONE, 2), "wrong": (FAILED, 1)
    }  # fmt: skip
    assert results["wrong"].message == "error: no video"
    assert results["good"].metrics == {"psnr": 30.5}
    assert read_state(tasks[0], stand_in / "out" / "good") == results["good"]
    changed = ClipTask("good", tasks[0].source, ("--time_budget=9",))
    assert read_state(changed, stand_in / "out" / "good") is None, "a changed task is done again"


def test_without_retries_a_crash_is_told(stand_in):
    (task,) = make_clips(stand_in, crash="crash once")
    result = run_clip(task, stand_in / "out", 1, retries=0)
    assert (result.status, result.attempts) == (FAILED, 1)
    assert "was ended by signal 9" in result.message


def test_a_clip_that_is_stopped_goes_on_the_next_time(stand_in):
    (task,) = make_clips(stand_in, slow="slow")
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    started = time.monotonic()
    run_clip(task, stand_in / "out", 1, retries=1, is_stopped=stop.is_set)
    assert time.monotonic() - started < 30
    assert read_state(task, stand_in / "out") is None
    assert not (stand_in / "out" / "running.json").exists()


def test_a_process_whose_program_was_killed_is_ended_before_its_clip_goes_on(stand_in):
    (task,) = make_clips(stand_in, clip="")
    (stand_in / "out").mkdir()
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    note = {"host": clip_job.socket.gethostname(), "pid": orphan.pid, "parent": ended.pid}
    (stand_in / "out" / "running.json").write_text(json.dumps(note))
    assert run_clip(task, stand_in / "out", 1, retries=0).status == DONE
    assert orphan.wait(timeout=5) == -signal.SIGTERM


def test_a_clip_that_another_program_works_on_is_left_to_it(stand_in):
    (task,) = make_clips(stand_in, clip="")
    (stand_in / "out").mkdir()
    note = {"host": clip_job.socket.gethostname(), "pid": os.getppid(), "parent": os.getppid()}
    (stand_in / "out" / "running.json").write_text(json.dumps(note))
    result = run_clip(task, stand_in / "out", 1, retries=0)
    assert result.status == FAILED
    assert "works on this clip" in result.message


# the table, and clusters


def test_the_table_shows_what_is_done_failed_and_waiting(stand_in):
    tasks = make_clips(stand_in, good="", wrong="wrong")
    results = list(run_locally(tasks, stand_in / "out", 1, 1, retries=0))
    page = write_tables(stand_in / "out", results, ["later <b>"])
    with (stand_in / "out" / "clips.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert (rows["good"]["status"], rows["good"]["psnr"], rows["good"]["run"]) == ("done", "30.5", "good/results/run")
    assert (rows["wrong"]["status"], rows["wrong"]["message"]) == ("failed", "error: no video")
    assert rows["later <b>"]["status"] == "waiting"
    text = page.read_text()
    assert "1 of 3 clips" in text
    assert "good/results/run/preview.png" in text
    assert "later &lt;b&gt;" in text


def test_the_slurm_script_unwraps_one_clip_for_each_task(tmp_path):
    script = tmp_path / "array.sh"
    write_slurm_script(script, tmp_path / "my clips.csv", tmp_path / "out", 12, 4, ["--set=time_budget=60"])
    text = script.read_text()
    assert "#SBATCH --array=0-11%4" in text
    assert f"'{tmp_path / 'my clips.csv'}'" in text
    assert '--set=time_budget=60 --only="$SLURM_ARRAY_TASK_ID"' in text
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize("address", ["head", "127.0.0.1:1", "127.0.0.1:99999"])
def test_a_ray_address_that_does_not_answer_is_named(address):
    with pytest.raises(UserError, match=f"--ray {address}: "):
        check_answers(address)


@pytest.mark.slow
def test_clips_on_a_ray_cluster_survive_a_killed_worker(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install ray")
    tasks = []
    for name in ("pan", "cross"):
        with media.VideoWriter(tmp_path / f"{name}.mp4", 12, crf=6) as video:
            for t in range(6):
                video.write(SCENES[name](96, 64, 6).frame(t).rgb)
        tasks.append(ClipTask(name, tmp_path / f"{name}.mp4", QUICK))
    killed = []

    def kill_worker() -> None:
        note = tmp_path / "out" / "pan" / "running.json"
        while not note.is_file():
            time.sleep(0.1)
        killed.append(json.loads(note.read_text())["parent"])
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill_worker, daemon=True).start()
    results = {result.name: result for result in run_on_ray(tasks, tmp_path / "out", "local", 2, 1, retries=2)}
    assert killed and killed[0] != os.getpid()
    assert {name: result.status for name, result in results.items()} == {"pan": DONE, "cross": DONE}
    assert results["pan"].metrics["psnr"] > 15


def test_the_command_writes_the_table_and_does_nothing_twice(stand_in, capsys):
    make_clips(stand_in, pan="", broken="wrong")
    command = [str(stand_in), f"--output_folder={stand_in / 'out'}", "--workers=2"]
    with pytest.raises(UserError, match="1 of 2 clips failed"):
        unwrap_many.main(command)
    assert "broken: error: no video" in capsys.readouterr().out
    (stand_in / "broken.mp4").unlink()
    unwrap_many.main(command)
    assert "1 of 1 clips are done already" in capsys.readouterr().out
    assert (stand_in / "out" / "pan" / "begun").read_text().split() == ["begun"]
    assert (stand_in / "out" / "index.html").is_file()


def test_ctrl_c_ends_the_clips_that_are_worked_on(stand_in):
    make_clips(stand_in, slow="slow", waiting="slow")
    code = (
        "import sys; from pathlib import Path; from batches import clip_job; import unwrap_many, command_line;"
        f"clip_job.ROOT = Path({str(stand_in / 'scripts')!r}); command_line.run_script(unwrap_many.main)"
    )
    command = [sys.executable, "-c", code, str(stand_in), f"--output_folder={stand_in / 'out'}", "--workers=1"]
    program = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # Also where the tests run in the background.
    )
    notes = [stand_in / "out" / name / "running.json" for name in ("slow", "waiting")]
    while not any(note.is_file() for note in notes):
        time.sleep(0.1)
    (note,) = (json.loads(note.read_text()) for note in notes if note.is_file())
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 130
    assert "the same command goes on" in errors
    assert not clip_job.is_alive(note["pid"])
    assert not any(note.is_file() for note in notes)
