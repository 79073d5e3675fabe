"""What the page works on: a run with its baked files, a project, and jobs that run beside it."""

import glob
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np

import media
from browser.bake import DESCRIPTION, bake_fingerprint, bake_run, describe_clip
from browser.jobs import SCRIPTS, Job
from browser.project_folder import EXPORTS, ProjectFolder, find_project_folder, find_revision
from command_line import UserError, warn
from config import config_text, load_config
from editing.atlas_file import LayerImage
from editing.project import parse_project
from export.openraster import write_openraster
from grids.model import GridModel
from grids.windows import WindowedModel
from masks.strokes import draw_strokes
from media import to_8_bit
from media.clip import Clip
from media.videos import CONTAINERS
from preprocessing.clip_sound import find_audio
from rendering.atlas_view import render_atlas
from rendering.trained_run import TrainedRun, open_run

REFIT_BUDGET_S = 15.0  # Seconds of training of a refit.
POLL_S = 0.25  # Seconds between two looks at files that other programs paint.
MOST_REFIT_S = 3600.0
REFIT_NOTE = "refit.json"  # In the folder of a finished refit: what it began from, and what mended it.

Message = dict[str, Any]


class Editor:
    """The state of the editor. Its methods may be called by several threads."""

    def __init__(self, run_folder: Path, project: Path, run_arguments: dict[str, Any]):
        """Open a run, bake it, and open or begin its project.

        project: its folder or its JSON. run_arguments: of `open_run`. Raises UserError if the run or the project
        cannot be used, or do not fit.
        """
        self.project = ProjectFolder(find_project_folder(project))
        self.original_folder, self.run_arguments = run_folder, run_arguments
        self.send: Callable[[Message], None] = lambda message: None  # Sends a message to all pages.
        self.job: Job | None = None
        self.job_lock = Lock()
        self.baked_folder = (self.project.folder / "baked").resolve()
        saved = self.project.load()
        latest = find_latest_run(run_folder, saved)
        if latest != run_folder:
            print(f"the project was mended last in {latest}, so that run is opened")
        self.open_run(latest, saved)
        for folder in self.baked_folder.iterdir():
            if folder != self.bake_folder and (folder / DESCRIPTION).is_file():
                shutil.rmtree(folder, ignore_errors=True)
        self.is_closed = Event()

    def open_run(self, run_folder: Path, project: dict[str, Any] | None = None) -> None:
        """Open a run and bake it; only then it becomes the current one. project: it must fit the run's clip."""
        run = open_run(run_folder, **self.run_arguments)
        if project is not None:
            check_clip(self.project.path, project, run)
        bake_folder = self.baked_folder / bake_fingerprint(run)
        bake = bake_run(run, bake_folder, find_audio(run.clip))
        self.run_folder, self.run, self.bake_folder, self.bake = run_folder, run, bake_folder, bake

    def describe(self) -> dict[str, Any]:
        """Return everything that a page needs when it is opened."""
        project = self.project.load()
        return {
            "bake": self.bake,
            "bake_url": f"bake/{self.bake['fingerprint']}/",
            "can_mend": isinstance(self.run.model, GridModel),
            "runs": [describe_run(folder) for folder in list_runs(self.original_folder)],
            "project": project,
            "revision": find_revision(project),
            "project_file": str(self.project.path),
            "job": self.job.describe() if self.job and self.job.state == "running" else None,
        }

    def choose_run(self, name: str) -> None:
        """Go on with another run of `list_runs`, and tell the pages. It takes seconds if it was not baked yet.

        Raises UserError if there is no such run, it cannot be used, or a job is running.
        """
        folders = {folder.resolve().name: folder for folder in list_runs(self.original_folder)}
        if name not in folders:
            raise UserError(
                f"{name}: no such run beside {self.original_folder}; reload the page to see those there are"
            )
        with self.job_lock:
            self.check_idle()
            self.open_run(folders[name], self.project.load())
        self.send({"event": "bake", "state": "done", "run": name, "is_chosen": True})

    def check_idle(self) -> None:
        """Raise UserError if a job is running."""
        if self.job is not None and self.job.state == "running":
            raise UserError(f"the {self.job.kind} is still running; wait for it, or cancel it")

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

    def start_job(
        self,
        kind: str,
        make_folder: Callable[[], Path],
        make_arguments: Callable[[Path], list[str]],
        finish: Callable[[Path, Job], Message],
    ) -> None:
        """Start a script that writes into a folder of its own. Raises UserError if another one is running.

        make_folder: makes the folder; it is removed if the script cannot be started, fails or is cancelled.
        make_arguments: returns the command line for the folder. finish: returns what the page is told when the script
        has succeeded, see `Job`.
        """
        with self.job_lock:
            self.check_idle()
            folder = make_folder()
            try:
                self.job = self.run_job(kind, folder, make_arguments(folder), finish)
            except (UserError, OSError):
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def run_job(self, kind: str, folder: Path, arguments: list[str], finish: Callable[[Path, Job], Message]) -> Job:
        """Return a job that runs a script, tells the pages what it does, and removes its folder if it fails."""

        def tell(job: Job) -> None:
            if job.state in ("failed", "cancelled"):
                shutil.rmtree(folder, ignore_errors=True)
            if job.state == "failed":
                warn(f"{kind}: {job.lines[-1] if job.lines else 'the script ended with an error'}")
            self.send({"event": "job", **job.describe()})

        return Job(kind, arguments, tell, lambda job: finish(folder, job))

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

        def make_arguments(folder: Path) -> list[str]:
            arguments = [*self.script("only_edit.py"), f"--project={self.project.path}", f"--format={file_format}"]
            arguments += [f"--output_folder={folder}", "--overwrite"]  # It is empty, and no other export takes it.
            arguments += ["--edit_space=native"] if values.get("native", True) else []
            return [*arguments, *(["--only_edit_layer"] if values.get("edit_only") else [])]

        def finish(folder: Path, _: Job) -> Message:
            video = next((path for path in folder.iterdir() if path.suffix in CONTAINERS), None)
            name = None if video is None else f"{folder.name}/{video.name}"
            return {"result": str(video or folder), "file": name}

        self.start_job("export", lambda: media.fresh_folder(self.project.folder / EXPORTS), make_arguments, finish)

    def script(self, name: str) -> list[str]:
        """Return the beginning of the command line of a script for the current run."""
        arguments = [str(SCRIPTS / name), f"--trained_model_folder={self.run_folder}", "--alpha_range=full"]
        for flag in ("video_name", "data_folder", "device", "fps"):
            if (value := self.run_arguments.get(flag)) is not None:
                arguments.append(f"--{flag}={value}")
        return arguments

    def refit(self, values: dict[str, Any]) -> None:
        """Train on from the current run, in a new run beside it, with the pins, strokes and dials of the saved project.

        Raises UserError if there are none, or if they cannot be used.
        """
        if isinstance(self.run.model, WindowedModel):
            raise UserError(
                "a long clip, which was trained in windows, is corrected by strokes in a folder: python train.py "
                f"--resume {self.run_folder} --strokes FOLDER"
            )
        if not isinstance(self.run.model, GridModel):
            raise UserError("only runs of representation 'grid' can be mended; train one with config/fast.json")
        mend = read_mend(self.project.load() or {})
        seconds = values.get("seconds", REFIT_BUDGET_S)
        if not isinstance(seconds, int | float) or not 0 < seconds < MOST_REFIT_S:
            raise UserError(f"a refit takes seconds above 0 and below {MOST_REFIT_S:g}, got {seconds!r}")

        def make_folder() -> Path:
            return copy_run(self.run_folder, self.original_folder, self.run.clip)

        def make_arguments(folder: Path) -> list[str]:
            arguments = [str(SCRIPTS / "train.py"), f"--resume={folder}", "--no_evaluation", f"--time_budget={seconds}"]
            path = folder / "pins.json"  # Also without any pin, because those of earlier refits may have been removed.
            media.write_text(path, json.dumps({"pins": mend.pins}, indent=2) + "\n")
            arguments.append(f"--pins={path}")
            if mend.strokes:
                arguments.append(f"--strokes={draw_strokes(mend.strokes, self.run.clip, folder / 'strokes')}")
            arguments += [f"--rigidity={layer + 1}:{factor}" for layer, factor in mend.rigidity.items()]
            device = self.run_arguments.get("device")
            return [*arguments, *([f"--device={device}"] if device else [])]

        def finish(folder: Path, job: Job) -> Message:
            self.send({"event": "job", **job.describe(), "stage": "preparing the frames"})
            note = {"from": self.run.name, "strokes": mend.strokes, "rigidity": mend.rigidity}
            self.open_run(folder)
            media.write_text(folder / REFIT_NOTE, json.dumps(note, indent=2) + "\n")
            return {"event": "bake", "run": folder.name}

        self.start_job("refit", make_folder, make_arguments, finish)


@dataclass(frozen=True)
class Mend:
    """What a project says about its mapping."""

    pins: list[dict[str, Any]]  # as `alignment.pins.read_pins` reads them, with places in two frames or more
    strokes: list[dict[str, Any]]  # as `masks.strokes.draw_strokes` takes them
    rigidity: dict[int, float]  # factors of the rigidity of layers that are not 1, by their index


def read_mend(project: dict[str, Any]) -> Mend:
    """Return what a project says about its mapping. Raises UserError if it says nothing, or is damaged."""
    try:
        mend = project.get("mend", {})
        pins = [pin for pin in mend.get("pins", []) if len(pin["places"]) > 1]
        rigidity = {int(layer): float(factor) for layer, factor in mend.get("rigidity", {}).items()}
        found = Mend(pins, list(mend.get("strokes", [])), {key: each for key, each in rigidity.items() if each != 1})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError("the pins, strokes or dials of the project are damaged; clear and set them again") from None
    if not (found.pins or found.strokes or found.rigidity):
        raise UserError("nothing to refit: drag a pin in a second frame, paint a mask stroke, or turn a dial")
    return found


def find_latest_run(run_folder: Path, project: dict[str, Any] | None) -> Path:
    """Return the run in which a project was mended last, if it is there, else the run that was asked for."""
    name = (project or {}).get("run")
    return next((folder for folder in list_runs(run_folder) if folder.resolve().name == name), run_folder)


def list_runs(original: Path) -> list[Path]:
    """Return the folder of a run, and those of its finished refits, the oldest first."""
    first = refit_name(original)
    notes = original.resolve().parent.glob(f"{glob.escape(first)}*/{REFIT_NOTE}")
    refits = [path.parent for path in notes if path.with_name("checkpoint").is_file()]
    refits = [path for path in refits if re.fullmatch(r"(_\d+)?", path.name.removeprefix(first))]
    return [original, *sorted(refits, key=lambda path: (len(path.name), path.name))]


def describe_run(folder: Path) -> dict[str, Any]:
    """Return a run's name, and of a refit the run from which it began and the mask strokes and dials that it used."""
    try:
        note = json.loads((folder / REFIT_NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    return {"from": None, "strokes": [], "rigidity": {}} | note | {"name": folder.resolve().name}


def refit_name(original: Path) -> str:
    """Return the name of the first refit of a run; later ones have a number behind it."""
    return f"{original.resolve().name}_refit"


def check_clip(path: Path, project: dict[str, Any], run: TrainedRun) -> None:
    """Raise UserError if a project was painted for another clip than that of a run."""
    own, other = describe_clip(run.clip), parse_project(path, project).clip
    if own != other:
        texts = ("{name} with {frames} frames of {width} x {height}".format(**each) for each in (other, own))
        raise UserError(
            f"{path}: painted for {' but the run is of '.join(texts)}; choose another folder with --project"
        )


def copy_run(run_folder: Path, original: Path, clip: Clip) -> Path:
    """Copy what is needed to train on from a run into a new folder beside the original, and return it.

    clip: the run's clip, which may have been moved since.
    """
    folder = media.fresh_folder(original.resolve().with_name(refit_name(original)))
    for name in ("checkpoint", "log.jsonl"):
        if (run_folder / name).is_file():
            shutil.copy2(run_folder / name, folder / name)
    config = load_config(run_folder / "config.json", {"data_folder": str(clip.folder.absolute())})
    media.write_text(folder / "config.json", config_text(config))
    return folder


def fresh_file(path: Path) -> Path:
    """Return a path that does not exist yet: the given one, or with a number."""
    numbered, number = path, 1
    while numbered.exists():
        number += 1
        numbered = path.with_stem(f"{path.stem}_{number}")
    return numbered
