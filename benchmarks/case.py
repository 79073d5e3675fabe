"""One case of the benchmark, run in a process of its own: train within the budget, measure, write result.json."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import media
from benchmarks.convergence import QualityCurve, time_to_quality
from benchmarks.measure import measure_against_scene
from benchmarks.tracks import PointFolder, measure_points
from config import Config, load_config
from evaluation.frame_metrics import (
    mean_metrics,
    measure_atlases,
    measure_frame,
    peak_memory_mb,
    render_visible_atlases,
)
from evaluation.image_metrics import psnr
from evaluation.mask_metrics import boundary_f, iou
from evaluation.patterns import checkerboard
from evaluation.preview import crop_to_visible
from grids.model import GridModel
from media import Pixels
from media.clip import Clip, evenly_spaced_indices
from media.contact_sheet import contact_rows, contact_sheet
from rendering.atlas_view import fit_atlas_views
from rendering.blending import apply_edits
from rendering.frame_store import FrameStore, temporary_frame_store
from rendering.frames import Floats, Frame, render_frames
from rendering.trained_run import TrainedRun
from scenes.catalogue import SCENES
from training.runs import start_run

HALF = 127  # Value of a mask, 0 to 255, above which a pixel is inside.
SHEET_FRAMES = 3  # Frames on the contact sheet with a checkerboard.
SHEET_HEIGHT_PX = 216  # Height of each picture on the contact sheet.
WORST_FRAMES, WORST_COLUMNS = 6, 3  # Frames with the least J that are shown, and how many of them in a row.
TRUE_COLOR, GIVEN_COLOR, LEARNED_COLOR = (60, 220, 60), (255, 210, 0), (255, 40, 40)  # of outlines, RGB
CHECKERBOARD_OPACITY = 0.6
NEVER = 10**9  # Iterations that no run reaches.


def run_case(task: dict[str, Any]) -> None:
    """Train and measure one case; write `result.json`, `sheet.png` and, with true masks, `worst.png` into its folder.

    task: "clip" (name), "folder" (of its frames), "config" (path), "budget_s" (seconds), "output" (folder of the case),
    "points" (folder of hand-placed points, or None) and "scene" ([width, height, frames] of an exact scene; None for
    other clips). An old output folder is replaced.
    """
    output = Path(task["output"])
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    trainer = start_run(case_config(task, output))
    curve = QualityCurve(trainer)
    trainer.train_without_evaluating(curve.measure_if_due)
    trainer.save()  # The run can be opened after the benchmark.
    run = TrainedRun(trainer.model.eval(), trainer.clip)
    result = {
        "clip": task["clip"],
        "config": Path(task["config"]).stem,
        "budget_s": task["budget_s"],
        "seconds": trainer.stopwatch.seconds,
        "iterations": trainer.iteration,
        "frames": len(run.clip),
        "size": [run.clip.width, run.clip.height],
        "peak_memory_mb": peak_memory_mb(),
    }
    result |= time_to_quality(curve.points)
    with temporary_frame_store(output) as store:
        result |= measure_run(run, store, task, output)
    if task["points"]:
        result |= measure_points(run, PointFolder(Path(task["points"])))
    result |= measure_without_looks(run)
    media.write_text(output / "result.json", json.dumps(result, indent=2) + "\n")


def case_config(task: dict[str, Any], output: Path) -> Config:
    """Return the task's config with its clip and its budget. The clip keeps its aspect."""
    return replace(
        load_config(Path(task["config"])),
        data_folder=task["folder"],
        results_folder_name=str(output / "runs"),
        resx=task["scene"][0] if task["scene"] else 768,
        resy=None,
        time_budget_s=task["budget_s"],
        iters_num=NEVER,
        evaluate_every=NEVER,
        checkpoint_every=NEVER,
    )


def measure_run(run: TrainedRun, store: FrameStore, task: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return all metrics that apply to the run, and write the contact sheets. store: empty; the frames are added."""
    per_frame: dict[str, list[float]] = {}
    sheet_times = evenly_spaced_indices(len(run.clip), SHEET_FRAMES)
    sheet_frames: dict[int, Frame] = {}
    for frame in render_frames(run.model, run.clip, run.full_range):
        source = run.clip.frame(frame.t).astype(np.float32) / 255
        for name, value in measure_frame(run.clip, frame, source).items():
            per_frame.setdefault(name, []).append(value)
        for name, value in measure_given_mask(run.clip, frame.t).items():
            per_frame.setdefault(name, []).append(value)
        store.add(frame)
        if frame.t in sheet_times:
            sheet_frames[frame.t] = frame
    metrics = mean_metrics(per_frame)
    views = fit_atlas_views(run.model, store.frames())
    atlases, texel_visibility = render_visible_atlases(run.model, store, views)
    metrics |= measure_atlases(store, texel_visibility, run.px_per_uv)
    if task["scene"]:
        metrics |= measure_against_scene(run, store, SCENES[task["clip"]](*task["scene"]))
    pictures = sheet_pictures(run, [sheet_frames[t] for t in sheet_times], atlases)
    media.write_png(folder / "sheet.png", contact_sheet(pictures, height=SHEET_HEIGHT_PX))
    if per_frame.get("iou"):
        worst = np.argsort(per_frame["iou"])[:WORST_FRAMES]
        outlined = {
            f"frame {t}, J {per_frame['iou'][t]:.3f}": draw_outlines(run.clip, store.frame(int(t))) for t in worst
        }
        media.write_png(folder / "worst.png", contact_rows(outlined, WORST_COLUMNS))
    return metrics


def measure_without_looks(run: TrainedRun) -> dict[str, float]:
    """Return the PSNR (dB) of a run without its looks, which are dropped; nothing if it has none."""
    if not isinstance(run.model, GridModel) or not len(run.model.looks):
        return {}
    run.model.forget_looks()
    frames = render_frames(run.model, run.clip, run.full_range)
    values = [psnr(frame.rgb, run.clip.frame(frame.t).astype(np.float32) / 255) for frame in frames]
    return {"psnr_without_looks": float(np.mean(values))}


def draw_outlines(clip: Clip, frame: Frame) -> Pixels:
    """Return a frame (H, W, 3) with the outlines of the true mask, the given one and the learned opacity."""
    picture = clip.frame(frame.t).copy()
    assert clip.true_masks is not None
    masks = clip.mask(clip.true_masks[frame.t]), clip.read_merged_mask(frame.t), media.to_8_bit(frame.coverage)
    for mask, color in zip(masks, (TRUE_COLOR, GIVEN_COLOR, LEARNED_COLOR), strict=True):
        if mask is not None:
            outlines, _ = cv2.findContours((mask > HALF).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, color, 1)
    return picture


def measure_given_mask(clip: Clip, t: int) -> dict[str, float]:
    """Return J and F of the mask that was given for frame t, against the true one; nothing without true masks."""
    given = clip.read_merged_mask(t)
    if clip.true_masks is None or given is None:
        return {}
    truth = clip.mask(clip.true_masks[t]) > HALF
    return {"input_iou": iou(given > HALF, truth), "input_boundary_f": boundary_f(given > HALF, truth)}


def sheet_pictures(run: TrainedRun, frames: list[Frame], atlases: list[Pixels]) -> dict[str, Pixels]:
    """Return the pictures of the contact sheet by caption, in their order."""
    middle = frames[len(frames) // 2]
    pictures = {
        "input": run.clip.frame(middle.t),
        "reconstruction": media.to_8_bit(middle.rgb),
        "opacity": media.to_8_bit(middle.coverage),
        "foreground atlas": crop_to_visible(atlases[0]),
        "background atlas": crop_to_visible(atlases[-1]),
    }
    for frame in frames:
        source = run.clip.frame(frame.t).astype(np.float32) / 255
        layers = [
            (make_translucent(checkerboard(uv)), visibility)
            for uv, visibility in zip(frame.uv, frame.visibility, strict=True)
        ]
        pictures[f"checkerboard, frame {frame.t}"] = media.to_8_bit(apply_edits(source, layers, frame.light))
    return pictures


def make_translucent(color: Floats, opacity: float = CHECKERBOARD_OPACITY) -> Floats:
    """Return colours (H, W, 3) as premultiplied RGBA (H, W, 4) with the same opacity everywhere."""
    return np.dstack((color * opacity, np.full_like(color[..., 0], opacity)))
