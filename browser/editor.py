"""What the page works on: a run with its baked files, a project, and jobs that run beside it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

import media
from browser.bake import bake_run, describe_clip
from browser.jobs import SCRIPTS, Job
from browser.project_folder import ProjectFolder
from command_line import UserError, warn
from editing.atlas_file import LayerImage, checkpoint_fingerprint
from editing.project import parse_project
from export.openraster import write_openraster
from masks.strokes import draw_strokes
from media import to_8_bit
from preprocessing.clip_sound import find_audio
from rendering.atlas_view import render_atlas
from rendering.trained_run import TrainedRun, open_run

REFIT_BUDGET_S = 15.0  # Seconds of training of a refit.
POLL_S = 0.25  # Seconds between two looks at files that other programs paint.
RUN_FILES = ("config.json", "checkpoint", "log.jsonl")  # of a run that a refit goes on from

Event_ = dict[str, Any]


class Editor:
    """The state of the editor. Its methods may be called by several threads."""

    def __init__(self, run_folder: Path, project_folder: Path, run_arguments: dict[str, Any]):
        """Open a run, bake it, and open or begin its project.

        run_arguments: of `open_run`. Raises UserError if the run or the project cannot be used, or do not fit.
        """
        self.project = ProjectFolder(media.make_folder(project_folder))
        self.original_folder, self.run_arguments = run_folder, run_arguments
        self.send: Callable[[Event_], None] = lambda event: None  # Sends an event to all pages.
        self.job: Job | None = None
        self.last_export: Path | None = None
        saved = self.project.load()
        self.run_folder = find_latest_run(run_folder, saved)
        if self.run_folder != run_folder:
            print(f"the project was mended last in {self.run_folder}, so that run is opened")
        self.open_run()
        if saved is not None:
            check_clip(self.project.path, saved, self.run)
        self.is_closed = Event()

    def open_run(self) -> None:
        """Open the current run and bake it, and remove the baked files of others."""
        self.run = open_run(self.run_folder, **self.run_arguments)
        baked = self.project.folder / "baked"
        self.bake_folder = baked / checkpoint_fingerprint(self.run.checkpoint)
        self.bake = bake_run(self.run, self.bake_folder, find_audio(self.run.clip))
        for folder in baked.iterdir():
            if folder != self.bake_folder and folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        """Return everything that a page needs when it is opened."""
        return {
            "bake": self.bake,
            "bake_url": f"bake/{self.bake_folder.name}/",
            "project": self.project.load(),
            "revision": self.project.revision,
            "project_file": str(self.project.path),
            "run_folder": str(self.run_folder),
            "job": self.job.describe() if self.job and self.job.state == "running" else None,
        }

    # files of other programs

    def make_paint_file(self, layer: int) -> str:
        """Write a layered file to paint in with another program, and return its name.

        Raises UserError if the layer has no atlas.
        """
        surfaces = [each["surface"] for each in self.bake["layers"]]
        if not 0 <= layer < len(surfaces) or surfaces[layer] is None:
            raise UserError(f"layer {layer}: no frame shows it; choose another layer")
        surface = LayerImage(**surfaces[layer])
        size = (surface.width, surface.height)
        picture = to_8_bit(render_atlas(self.run.model, surface.view(self.run.model, size, None), size))
        opaque = np.dstack((picture, np.full(picture.shape[:2], 255, np.uint8)))
        path = fresh_file(self.project.folder / f"{self.run.model.layers[layer].name}.ora")
        write_openraster(path, {"paint here": np.zeros_like(opaque), "atlas": opaque})
        return path.name

    def watch_files(self) -> None:
        """Tell the pages whenever a file of the project's folder is saved, until the editor is closed."""
        shown = seen = self.read_fingerprints()
        while not self.is_closed.wait(POLL_S):
            now = self.read_fingerprints()
            if now == seen:  # A file that changes between two looks is still being saved.
                for name in now:
                    if now[name] != shown.get(name):
                        self.send({"event": "file", "name": name})
                shown = now
            seen = now

    def read_fingerprints(self) -> dict[str, tuple[int, int]]:
        """Return time and size of the files in which other programs may paint, by name."""
        found = {}
        for name in self.project.list_paint_files():
            try:
                status = (self.project.folder / name).stat()
            except FileNotFoundError:  # Some programs replace a file when they save it.
                continue
            found[name] = status.st_mtime_ns, status.st_size
        return found

    # jobs

    def start_job(self, kind: str, arguments: list[str], finish: Callable[[Job], Event_]) -> None:
        """Start a script. finish: returns the event when it is done. Raises UserError if another one is running."""
        if self.job is not None and self.job.state == "running":
            raise UserError(f"the {self.job.kind} is still running; wait for it, or cancel it")

        def tell(job: Job) -> None:
            event: Event_ = {"event": "job", **job.describe()}
            if job.state == "done":
                try:
                    event |= finish(job)
                except UserError as error:
                    event |= {"state": "failed", "message": str(error)}
            if job.state == "failed":
                warn(f"{kind}: {job.lines[-1] if job.lines else 'the script ended with an error'}")
            self.send(event)

        self.job = Job(kind, arguments, tell)

    def cancel_job(self) -> None:
        """Stop the job that is running, if there is one."""
        if self.job is not None:
            self.job.cancel()

    def export(self, values: dict[str, Any]) -> None:
        """Render the saved project as a video or as pictures with only_edit.py. values: what the page asks for.

        Raises UserError for values that are not known, and if nothing is painted.
        """
        file_format = values.get("format", "mp4")
        if file_format not in ("mp4", "prores", "ffv1", "png", "exr"):
            raise UserError(f"format is {file_format!r}, expected mp4, prores, ffv1, png or exr")
        arguments = [*self.script("only_edit.py"), f"--project={self.project.path}", f"--format={file_format}"]
        arguments += [f"--output_folder={self.project.folder / 'export'}"]
        arguments += ["--edit_space=native"] if values.get("native", True) else []
        arguments += ["--only_edit_layer"] if values.get("edit_only") else []
        self.start_job("export", arguments, lambda job: {"result": job.find_result()})

    def script(self, name: str) -> list[str]:
        """Return the beginning of the command line of a script for the current run."""
        arguments = [str(SCRIPTS / name), f"--trained_model_folder={self.run_folder}"]
        for flag in ("video_name", "data_folder", "device", "fps"):
            if (value := self.run_arguments.get(flag)) is not None:
                arguments.append(f"--{flag}={value}")
        return arguments

    def refit(self, values: dict[str, Any]) -> None:
        """Train on from the current run, in a new run beside it, with the pins, strokes and dials of the saved project.

        Raises UserError if there are none, or if they cannot be used.
        """
        saved = self.project.load() or {}
        mend = saved.get("mend", {})
        pins = [pin for pin in mend.get("pins", []) if len(pin.get("places", [])) > 1]
        strokes, rigidity = mend.get("strokes", []), mend.get("rigidity", {})
        if not (pins or strokes or any(float(factor) != 1 for factor in rigidity.values())):
            raise UserError("nothing to refit: drag a pin in a second frame, paint a mask stroke, or turn a dial")
        folder = copy_run(self.run_folder, self.original_folder)
        arguments = [str(SCRIPTS / "train.py"), f"--resume={folder}", "--no_evaluation"]
        arguments.append(f"--time_budget={float(values.get('seconds', REFIT_BUDGET_S))}")
        if pins:
            path = folder / "pins.json"
            media.write_text(path, json.dumps({"pins": pins}, indent=2) + "\n")
            arguments.append(f"--pins={path}")
        if strokes:
            arguments.append(f"--strokes={draw_strokes(strokes, self.run.clip, folder / 'strokes')}")
        arguments += [f"--rigidity={int(layer) + 1}:{float(factor)}" for layer, factor in rigidity.items()]
        if device := self.run_arguments.get("device"):
            arguments.append(f"--device={device}")

        def finish(job: Job) -> Event_:
            self.run_folder = folder
            self.send({"event": "job", **job.describe(), "state": "running", "stage": "preparing the frames"})
            self.open_run()
            return {"event": "bake", "run": folder.name}

        self.start_job("refit", arguments, finish)


def find_latest_run(run_folder: Path, project: dict[str, Any] | None) -> Path:
    """Return the run in which a project was mended last, if it is there, else the run that was asked for."""
    name = (project or {}).get("run")
    if isinstance(name, str) and name.startswith(f"{run_folder.resolve().name}_refit"):
        latest = run_folder.resolve().parent / Path(name).name
        if (latest / "checkpoint").is_file():
            return latest
    return run_folder


def check_clip(path: Path, project: dict[str, Any], run: TrainedRun) -> None:
    """Raise UserError if a project was painted for another clip than that of a run."""
    own, other = describe_clip(run.clip), parse_project(path, project).clip
    if own != other:
        texts = ("{name} with {frames} frames of {width} x {height}".format(**each) for each in (other, own))
        raise UserError(
            f"{path}: painted for {' but the run is of '.join(texts)}; choose another folder with --project"
        )


def copy_run(run_folder: Path, original: Path) -> Path:
    """Copy what is needed to train on from a run into a new folder beside the original, and return it."""
    folder = media.fresh_folder(original.resolve().with_name(f"{original.resolve().name}_refit"))
    for name in RUN_FILES:
        if (run_folder / name).is_file():
            shutil.copy2(run_folder / name, folder / name)
    return folder


def fresh_file(path: Path) -> Path:
    """Return a path that does not exist yet: the given one, or with a number."""
    numbered, number = path, 1
    while numbered.exists():
        number += 1
        numbered = path.with_stem(f"{path.stem}_{number}")
    return numbered
