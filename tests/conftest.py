"""Shared fixtures: a tiny clip with exact ground truth, a config for it, and the published reference numbers."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from script_server import CAN_FORK, TIMEOUT_S, ScriptServer

from config import Config, config_text, load_config
from scenes.catalogue import demo
from scenes.files import write_scene

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

if "PYTEST_XDIST_WORKER" in os.environ:  # Tests run on all cores already, so each has one thread.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

TINY = {
    "maximum_number_of_frames": 4,
    "resx": None,
    "resy": None,
    "iters_num": 4,
    "evaluate_every": 4,
    "checkpoint_every": 2,
    "log_every": 1,
    "samples_batch": 256,
    "pretrain_iter_number": 1,
    "stop_bootstrapping_iteration": 2,
    "stop_global_rigidity": 1,
    "global_rigidity_derivative_amount_fg": 5,
    "global_rigidity_derivative_amount_bg": 5,
    **{f"number_of_channels_{name}": 16 for name in ("mapping1", "mapping2", "atlas", "alpha")},
    **{f"number_of_layers_{name}": 3 for name in ("mapping1", "mapping2", "alpha")},
}


def write_exact_flow(clip: Path) -> Path:
    """Write the exact flow of a scene on disk to the folder that preprocessing would fill; return the frames folder."""
    target = clip.with_name(clip.name + "_flow")
    target.mkdir()
    for path in clip.with_name(clip.name + "_gt_flow").glob("*.npy"):
        np.save(target / path.name, np.load(path)[..., :2])
    return clip


def draw(data: Path, **size) -> Path:
    """Write a tiny clip with rough masks and exact flow; return its frames folder."""
    return write_exact_flow(write_scene(demo(**({"width": 48, "height": 32, "frames": 4} | size)), data, fps=12))


def draw_without_masks(data: Path) -> Path:
    """Write a tiny clip that has no masks yet; return its frames folder."""
    folder = draw(data, frames=6)
    shutil.rmtree(folder.with_name(f"{folder.name}_maskrcnn"))
    return folder


@pytest.fixture(scope="session")
def shared_clip(tmp_path_factory) -> Path:
    """A tiny clip that tests must not change."""
    return draw(tmp_path_factory.mktemp("data"))


@pytest.fixture
def clip_folder(tmp_path) -> Path:
    """A tiny clip that belongs to one test, which may change it."""
    return draw(tmp_path / "data")


def tiny_config(clip: Path, results: Path, **changes) -> Config:
    """Return settings with which training takes well under a second."""
    return dataclasses.replace(Config(data_folder=str(clip), results_folder_name=str(results)), **(TINY | changes))


def finish_grid_run(factory, width: int, height: int, iterations: int, **changes):
    """Return the trainer of a finished run of grids on a tiny clip of six frames, without an evaluation."""
    from training.runs import start_run

    clip = draw(factory.mktemp("data"), width=width, height=height, frames=6)
    settings = {"representation": "grid", "maximum_number_of_frames": 6, "iters_num": iterations}
    settings |= {"evaluate_every": 1000, "checkpoint_every": 1000, "log_every": 10}
    trainer = start_run(tiny_config(clip, factory.mktemp("runs"), **(settings | changes)))
    trainer.run(with_evaluation=False)
    return trainer


def write_config(path: Path, config: Config) -> Path:
    """Write a config as a file; return its path."""
    path.write_text(config_text(config))
    return path


@pytest.fixture(scope="session")
def finished_run(shared_clip, tmp_path_factory):
    """Folder of a finished run on the tiny clip, with mappings close to the identity."""
    from training.runs import start_run

    trainer = start_run(tiny_config(shared_clip, tmp_path_factory.mktemp("runs"), pretrain_iter_number=250))
    trainer.run()
    return trainer.folder


SCRIPT_SERVER = ScriptServer()


def run_script(*arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script in a process of its own; on Linux, one that has loaded torch already (see `script_server`)."""
    words, environment = [str(each) for each in arguments], os.environ | {"PYTHONPATH": str(ROOT)}
    if CAN_FORK and words[0].endswith(".py"):
        return SCRIPT_SERVER.run(words, cwd, environment)
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


def ffmpeg(*arguments) -> None:
    """Run ffmpeg, which makes inputs for tests, and raise an error if it fails."""
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def read_video(path: Path):
    """Yield the frames (H, W, 3) uint8 of a video file."""
    with closing(imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")) as source:
        width, height = next(source)["size"]
        for data in source:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def video_metadata(path: Path) -> dict:
    """Return the properties of a video file: fps, size (width, height), ..."""
    with closing(imageio_ffmpeg.read_frames(str(path))) as source:
        return next(source)


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty."""
    return text.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Folder of the numbers recorded from the published implementation; without it the test is skipped."""
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip("the published reference numbers are not on this machine (../shared/reference)")
    return folder


@pytest.fixture(scope="session")
def expected(reference_folder):
    """The recorded arrays by name."""
    with np.load(reference_folder / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def reference_config(reference_folder) -> Config:
    """The config of the recorded training run."""
    config = load_config(reference_folder / "trained" / "config.json")
    return dataclasses.replace(config, data_folder=str(reference_folder / "data" / "tiny"), sampling="published")


def curve(folder: Path) -> dict[int, float]:
    """Return the total loss of the logged iterations: iteration -> loss."""
    return {row["iteration"]: row["total"] for row in read_log(folder) if "total" in row}


def read_log(folder: Path) -> list[dict]:
    """Return the rows of the log of a run."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
