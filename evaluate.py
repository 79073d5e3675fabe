"""Evaluation of a trained model: the published pictures and videos, metrics, and a page that shows them.

Each core renders one frame at a time; every frame is rendered once and written to the videos. Later passes need the
mappings and the opacities again; these are stored in a temporary folder.
"""

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from command_line import warn
from evaluation.error_maps import write_error_maps
from evaluation.frame_metrics import (
    ATLAS_SIZE_PX,
    mean_metrics,
    measure_atlases,
    measure_frame,
    peak_memory_mb,
    render_visible_atlases,
)
from evaluation.image_metrics import load_lpips
from evaluation.page import write_page
from evaluation.patterns import checkerboard, letter_pattern, uv_colors
from evaluation.plots import plot_per_frame
from evaluation.temporal_metrics import warp_error
from media import Pixels, VideoSet, to_8_bit, write_png, write_text
from media.clip import Clip
from rendering.atlas_view import AtlasView, compute_atlas_uv, fit_atlas_views
from rendering.blending import apply_edits
from rendering.frame_store import FrameStore, temporary_frame_store
from rendering.frames import VISIBLE, Floats, Frame, map_frames
from rendering.resampling import sample_image
from rendering.trained_run import TrainedRun
from unwrap_utils import consistent_pixels

ALL_VIDEOS, SHORT_SET = "all", "short"  # Values of "videos" in metrics.json.


# Flow (H, W, 2) from the frame before a frame to it, and whether (H, W) it agrees with the flow back.
FlowFromPrevious = tuple[Floats, NDArray[np.bool_]]


@dataclass
class Evaluation:
    """The results of an evaluation that the log and the preview show."""

    folder: Path
    metrics: dict[str, Any]  # as in metrics.json
    atlases: list[Pixels]  # (S, S, 3) for each layer, the foreground first
    pictures: dict[str, Pixels]  # input, reconstruction and opacity of the middle frame; first and last reconstruction


def evaluate(run: TrainedRun, folder: Path, opacity_images: bool = False, is_full: bool = True) -> Evaluation:
    """Write the published outputs of a run into `folder`, with metrics.json and index.html.

    opacity_images: write texture_orig*_alpha.png, too. is_full: write all published videos; False writes only the
    reconstruction, the opacity, the residuals and the letters on all layers, with the same metrics and pictures. If the
    clip has true masks in `NAME_gt`, opacity is compared with them.
    """
    start_time = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_frame_store(folder) as store:
        per_frame, pictures = write_reconstruction(run, folder, store, is_full)
        views = fit_atlas_views(run.model, store.frames())
        atlases, texel_visibility = render_visible_atlases(run.model, store, views)
        write_atlases(atlases, texel_visibility, folder, opacity_images)
        letter_metrics = write_letter_videos(run, folder, store, views, atlases, is_full)
        if is_full:
            write_error_maps(run.clip, folder, store, run.px_per_uv)
        atlas_metrics = measure_atlases(store, texel_visibility, run.px_per_uv)
    metrics: dict[str, Any] = mean_metrics(per_frame) | letter_metrics | atlas_metrics
    metrics["seconds"] = round(time.perf_counter() - start_time, 2)
    if (peak := peak_memory_mb()) is not None:
        metrics["peak_memory_mb"] = peak
    metrics["videos"] = ALL_VIDEOS if is_full else SHORT_SET
    metrics["per_frame"] = per_frame
    plot_per_frame(folder / "quality.png", per_frame)
    write_page(folder, run.clip.name, metrics, run.model.layers.names)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")  # Last: the evaluation is complete.
    return Evaluation(folder, metrics, atlases, pictures)


def has_full_set(folder: Path) -> bool:
    """Return whether the folder of an evaluation holds all published videos, as its metrics.json says."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics.get("videos", ALL_VIDEOS) == ALL_VIDEOS  # Evaluations without the note are older and hold all.


def write_reconstruction(
    run: TrainedRun, folder: Path, store: FrameStore, is_full: bool
) -> tuple[dict[str, list[float]], dict[str, Pixels]]:
    """Render the clip once: write the videos that need colours, and add the frames to the store.

    Returns the metrics of every frame by name, and the pictures of an `Evaluation`.
    """
    clip = run.clip

    def measure_and_show(frame: Frame) -> tuple[dict[str, float], Pixels, dict[str, Pixels]]:
        """Return the metrics of a frame, the frame of the clip, and the pictures of the videos by their kind."""
        source_image = clip.frame(frame.t)
        source = source_image.astype(np.float32) / 255
        residual = np.abs(frame.rgb - source)
        store.add(frame, residual @ np.full(3, 1 / 3, np.float32))
        shown = {"reconstruction": to_8_bit(frame.rgb), "alpha": to_8_bit(frame.coverage)}
        shown["residuals"] = to_8_bit(residual)
        if is_full:
            if (mask := clip.read_merged_mask(frame.t)) is not None:
                shown["alpha_vs_mask_rcnn"] = np.hstack((shown["alpha"], mask))
            shown |= show_mappings(frame, source)
        return measure_frame(clip, frame, source), source_image, shown

    per_frame: dict[str, list[float]] = {}
    pictures: dict[str, Pixels] = {}
    load_lpips()  # Threads would load it at the same time.
    measured = map_frames(measure_and_show, run.model, clip, run.full_range)
    frames = tqdm(measured, total=len(clip), desc="rendering", unit="frame")
    with closing(measured), VideoSet(folder, clip.name, clip.fps, clip.times_s) as videos:
        for t, (metrics, source, shown) in enumerate(frames):
            for name, value in metrics.items():
                per_frame.setdefault(name, []).append(value)
            frames.set_postfix(psnr=f"{np.mean(per_frame['psnr']):.2f} dB", refresh=False)
            for kind, picture in shown.items():
                videos.write(kind, picture)
            if t == len(clip) // 2:
                pictures |= {"input": source, "reconstruction": shown["reconstruction"], "alpha": shown["alpha"]}
            if t == 0:
                pictures |= {"first input": source, "first": shown["reconstruction"]}
            if t == len(clip) - 1:
                pictures["last"] = shown["reconstruction"]
    return per_frame, pictures


def show_mappings(frame: Frame, source: Floats) -> dict[str, Pixels]:
    """Return the pictures of each mapping by the kind of video: uv as colours, and a checkerboard over the layer.

    source: (H, W, 3) in [0, 1], the frame of the clip.
    """
    pictures: dict[str, Pixels] = {}
    for number, (uv, visibility) in enumerate(zip(frame.uv, frame.visibility, strict=True), 1):
        colors = uv_colors(uv)
        pictures[f"uv_{number}"] = to_8_bit(colors)
        if number < len(frame.uv):
            pictures[f"uv_{number}_masked"] = to_8_bit(colors * visibility[..., None])
        squares = checkerboard(uv)
        edit = np.dstack((squares, np.ones_like(squares[..., :1])))
        pictures[f"checkerboard_{number}"] = to_8_bit(apply_edits(source, [(edit, visibility)]))
    return pictures


def write_atlases(atlases: list[Pixels], texel_visibility: list[Tensor], folder: Path, opacity_images: bool) -> None:
    """Write the atlas images (S, S, 3). Warn about objects that are visible in no frame.

    texel_visibility: for each layer the largest visibility of each texel in any frame, (S, S). opacity_images: write
    RGBA images with this visibility as opacity, too.
    """
    for number, (atlas, visibility) in enumerate(zip(atlases, texel_visibility, strict=True), 1):
        if not (visibility > VISIBLE).any() and number < len(atlases):
            warn(
                f"object {number} is visible in no frame, so its atlas is black; train longer, or correct the rough "
                "masks"
            )
        write_png(folder / f"texture_orig{number}.png", atlas)
        if opacity_images:
            opacity = to_8_bit(visibility.numpy())
            write_png(folder / f"texture_orig{number}_alpha.png", np.dstack((atlas, opacity)))


def read_flow_from_previous(clip: Clip, t: int) -> FlowFromPrevious:
    """Read the flow from frame t - 1 to frame t, with the pixels where it can be trusted."""
    flow, back_flow = clip.flow_pair(t - 1)
    return flow, consistent_pixels(flow, back_flow)


def write_letter_videos(
    run: TrainedRun,
    folder: Path,
    store: FrameStore,
    views: list[AtlasView],
    atlases: list[Pixels],
    is_full: bool,
) -> dict[str, float]:
    """Print letters on each atlas and write the atlases and videos with the letters.

    There are videos of each layer's letters over the frames, of all letters over the frames, and of each layer alone;
    with is_full False only that of all letters. Returns `edit_warp_error`, how steady the letters are along the flow,
    or an empty dict if the clip has no flow.
    """
    clip, letters = run.clip, letter_pattern(ATLAS_SIZE_PX)
    has_flow = clip.sibling_folder("_flow").is_dir()
    everywhere = np.ones_like(letters[..., 3])
    printed_atlases = [apply_edits(atlas.astype(np.float32) / 255, [(letters, everywhere)]) for atlas in atlases]
    for number, atlas in enumerate(printed_atlases, 1):
        write_png(folder / f"texture_edit{number}.png", to_8_bit(atlas))
    pattern, textures = torch.from_numpy(letters), [torch.from_numpy(atlas) for atlas in printed_atlases]

    def print_letters(frame: Frame) -> tuple[Floats, dict[str, Pixels], FlowFromPrevious | None]:
        """Return a frame (H, W, 3) with all letters, the pictures of the other videos by their kind, and the flow."""
        source: Floats = clip.frame(frame.t).astype(np.float32) / 255
        edits: list[tuple[Floats, Floats]] = []
        pictures: dict[str, Pixels] = {}
        for number, atlas_uv in enumerate(compute_atlas_uv(run.model, frame), 1):
            texels = views[number - 1].to_pixels(atlas_uv, ATLAS_SIZE_PX)
            edits.append((sample_image(pattern, texels).numpy(), frame.visibility[number - 1]))
            if is_full:
                pictures[f"edited{number}"] = to_8_bit(apply_edits(source, edits[-1:], frame.light))
                pictures[f"edited{number}_tex"] = to_8_bit(sample_image(textures[number - 1], texels).numpy())
        flow = read_flow_from_previous(clip, frame.t) if has_flow and frame.t > 0 else None
        return apply_edits(source, edits, frame.light), pictures, flow

    earlier: Floats | None = None  # the frame before this one, with letters
    errors: list[float] = []
    printed = store.map(print_letters)
    frames = tqdm(printed, total=len(clip), desc="printing letters", unit="frame")
    with closing(printed), VideoSet(folder, clip.name, clip.fps, clip.times_s) as videos:
        for edited, pictures, flow in frames:
            for kind, picture in (pictures | {"edit": to_8_bit(edited)}).items():
                videos.write(kind, picture)
            if flow is not None and earlier is not None:
                error = warp_error(earlier, edited, *flow)
                if error is not None:
                    errors.append(error)
            earlier = edited
    return {"edit_warp_error": round(float(np.mean(errors)), 6)} if errors else {}
