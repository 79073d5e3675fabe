"""One case of the benchmark, in a process of its own: train within the budget, measure, leave result.json."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import media
from benchmarks.measure import measure_against_scene
from config import Config, load_config
from evaluation.frame_metrics import mean_metrics, measure_atlases, measure_frame, peak_memory_mb, render_seen_atlases
from evaluation.patterns import checkerboard
from evaluation.preview import crop_to_seen
from media.clip import evenly_spaced
from media.contact_sheet import contact_sheet
from rendering.atlas_view import fit_atlas_views
from rendering.blending import apply_edits
from rendering.frame_store import FrameStore
from rendering.frames import Floats, render_frames
from rendering.trained_run import TrainedRun
from scenes.catalogue import SCENES
from training.loop import start_run

SHOWN_FRAMES = 3
FOREVER = 10**9


def run_case(task: dict) -> None:
    """Train, measure and write `result.json` and `sheet.png` into the task's folder."""
    output = Path(task["output"])
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    config = case_config(task, output)
    trainer = start_run(config)
    trainer.train_without_evaluating()
    trainer.save()  # to look at the run afterwards
    run = TrainedRun(trainer.model.eval(), trainer.clip)
    result = {
        "clip": task["clip"],
        "config": Path(task["config"]).stem,
        "budget_s": task["budget_s"],
        "seconds": trainer.watch.seconds,
        "iterations": trainer.iteration,
        "frames": len(run.clip),
        "size": [run.clip.width, run.clip.height],
        "peak_memory_mb": peak_memory_mb(),
    }
    with tempfile.TemporaryDirectory(dir=output) as kept:
        store = FrameStore(Path(kept))
        result |= measure(run, store, task, output / "sheet.png")
    media.write_text(output / "result.json", json.dumps(result, indent=2) + "\n")


def case_config(task: dict, output: Path) -> Config:
    """The config with the task's clip and budget; a clip of another aspect keeps its own."""
    return replace(
        load_config(Path(task["config"])),
        data_folder=task["folder"],
        results_folder_name=str(output / "runs"),
        resx=task["scene"][0] if task["scene"] else 768,
        resy=None,
        time_budget_s=task["budget_s"],
        iters_num=FOREVER,
        evaluate_every=FOREVER,
        checkpoint_every=FOREVER,
    )


def measure(run: TrainedRun, store: FrameStore, task: dict, sheet: Path) -> dict[str, float]:
    """All figures that apply, and the contact sheet."""
    per_frame: dict[str, list[float]] = {}
    kept, shown = {}, evenly_spaced(len(run.clip), SHOWN_FRAMES)
    for frame in render_frames(run.model, run.clip, run.full_range):
        for name, value in measure_frame(run.clip, frame).items():
            per_frame.setdefault(name, []).append(value)
        store.add(frame)
        if frame.t in shown:
            kept[frame.t] = frame
    figures = mean_metrics(per_frame)
    views = fit_atlas_views(run.model, store.frames())
    atlases, seen = render_seen_atlases(run.model, store, views)
    figures |= measure_atlases(store, seen, run.px_per_uv)
    if task["scene"]:
        figures |= measure_against_scene(run, store, SCENES[task["clip"]](*task["scene"]))
    middle = kept[shown[len(shown) // 2]]
    pictures = {
        "input": run.clip.frame(middle.t),
        "reconstruction": media.to_8_bit(middle.rgb),
        "opacity": media.to_8_bit(middle.coverage),
        "foreground atlas": crop_to_seen(atlases[0]),
        "background atlas": crop_to_seen(atlases[-1]),
    }
    for t, frame in kept.items():
        source = run.clip.frame(t).astype(np.float32) / 255
        layers = [
            (make_translucent(checkerboard(uv)), share) for uv, share in zip(frame.uv, frame.visibility, strict=True)
        ]
        pictures[f"checkerboard, frame {t}"] = media.to_8_bit(apply_edits(source, layers, frame.light))
    media.write_png(sheet, contact_sheet(pictures, height=216))
    return figures


def make_translucent(color: Floats, opacity: float = 0.6) -> Floats:
    """Colour (H, W, 3) as premultiplied RGBA of one opacity."""
    return np.dstack((color * opacity, np.full_like(color[..., 0], opacity)))
