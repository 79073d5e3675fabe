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
from rendering import Floats, FrameStore, TrainedRun, composite, layer_views, render_frames
from reporting.figures import atlas_figures, frame_figures, mean_figures, peak_memory_mb, seen_atlases
from reporting.patterns import checkerboard
from reporting.preview import contact_sheet, seen_part
from runs.models import layer_scales_px
from scenes.catalogue import SCENES
from training import start_run
from unwrap_utils import spread_numbers

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
    run = TrainedRun(trainer.model.eval(), trainer.clip, True, layer_scales_px(trainer.model, trainer.clip.size))
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
    kept, shown = {}, spread_numbers(len(run.clip), SHOWN_FRAMES)
    for frame in render_frames(run.model, run.clip, run.full_range):
        for name, value in frame_figures(run.clip, frame).items():
            per_frame.setdefault(name, []).append(value)
        store.add(frame)
        if frame.t in shown:
            kept[frame.t] = frame
    figures = mean_figures(per_frame)
    views = layer_views(run.model, store.frames())
    atlases, seen = seen_atlases(run.model, store, views)
    figures |= atlas_figures(store, seen, run.px_per_uv)
    if task["scene"]:
        figures |= measure_against_scene(run, store, SCENES[task["clip"]](*task["scene"]))
    middle = kept[shown[len(shown) // 2]]
    pictures = {
        "input": run.clip.frame(middle.t),
        "reconstruction": media.to_8_bit(middle.rgb),
        "opacity": media.to_8_bit(middle.coverage),
        "foreground atlas": seen_part(atlases[0]),
        "background atlas": seen_part(atlases[-1]),
    }
    for t, frame in kept.items():
        source = run.clip.frame(t).astype(np.float32) / 255
        layers = [(see_through(checkerboard(uv)), share) for uv, share in zip(frame.uv, frame.visibility, strict=True)]
        pictures[f"checkerboard, frame {t}"] = media.to_8_bit(composite(source, layers, frame.light))
    media.write_png(sheet, contact_sheet(pictures, height=216))
    return figures


def see_through(color: Floats, opacity: float = 0.6) -> Floats:
    """Colour (H, W, 3) as premultiplied RGBA of one opacity."""
    return np.dstack((color * opacity, np.full_like(color[..., 0], opacity)))
