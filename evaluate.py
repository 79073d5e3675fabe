"""Evaluation of a trained model: the published pictures and videos, metrics, and a page that shows them.

The frames are rendered once, one at a time, and written to the videos. Later passes need the mappings and the
opacities again; these are stored in a temporary folder.
"""

import json
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from evaluation.page import write_page
from evaluation.patterns import checkerboard, letter_pattern, uv_colors
from evaluation.plots import plot_per_frame
from evaluation.temporal_metrics import warp_error
from media import Pixels, VideoSet, to_8_bit, write_png, write_text
from rendering.atlas_view import AtlasView, compute_atlas_uv, fit_atlas_views
from rendering.blending import apply_edits
from rendering.frame_store import FrameStore, temporary_frame_store
from rendering.frames import VISIBLE, Floats, Frame, render_frames
from rendering.resampling import sample_image
from rendering.trained_run import TrainedRun
from unwrap_utils import consistent_pixels


@dataclass
class Evaluation:
    """The results of an evaluation that the log and the preview show."""

    folder: Path
    metrics: dict[str, Any]  # as in metrics.json
    atlases: list[Pixels]  # (S, S, 3) for each layer, the foreground first
    pictures: dict[str, Pixels]  # input, reconstruction and opacity of the middle frame; first and last reconstruction


def evaluate(run: TrainedRun, folder: Path, opacity_images: bool = False) -> Evaluation:
    """Write the published outputs of a run into `folder`, with metrics.json and index.html.

    opacity_images: write texture_orig*_alpha.png, too. If the clip has true masks in `NAME_gt`, opacity is compared
    with them.
    """
    start_time = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_frame_store(folder) as store:
        per_frame, pictures = write_reconstruction(run, folder, store)
        views = fit_atlas_views(run.model, store.frames())
        atlases, texel_visibility = render_visible_atlases(run.model, store, views)
        write_atlases(atlases, texel_visibility, folder, opacity_images)
        letter_metrics = write_letter_videos(run, folder, store, views, atlases)
        write_error_maps(run.clip, folder, store, run.px_per_uv)
        atlas_metrics = measure_atlases(store, texel_visibility, run.px_per_uv)
    metrics: dict[str, Any] = mean_metrics(per_frame) | letter_metrics | atlas_metrics
    metrics["seconds"] = round(time.perf_counter() - start_time, 2)
    if (peak := peak_memory_mb()) is not None:
        metrics["peak_memory_mb"] = peak
    metrics["per_frame"] = per_frame
    plot_per_frame(folder / "quality.png", per_frame)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_page(folder, run.clip.name, metrics, run.model.layers.names)
    return Evaluation(folder, metrics, atlases, pictures)


def write_reconstruction(
    run: TrainedRun, folder: Path, store: FrameStore
) -> tuple[dict[str, list[float]], dict[str, Pixels]]:
    """Render the clip once: write the videos that need colours, and add the frames to the store.

    Returns the metrics of every frame by name, and the pictures of an `Evaluation`.
    """
    clip = run.clip
    per_frame: dict[str, list[float]] = {}
    pictures: dict[str, Pixels] = {}
    frames = tqdm(render_frames(run.model, clip, run.full_range), total=len(clip), desc="rendering", unit="frame")
    with VideoSet(folder, clip.name, clip.fps) as videos:
        for frame in frames:
            source_image = clip.frame(frame.t)
            source = source_image.astype(np.float32) / 255
            for name, value in measure_frame(clip, frame).items():
                per_frame.setdefault(name, []).append(value)
            frames.set_postfix(psnr=f"{np.mean(per_frame['psnr']):.2f} dB")
            residual = np.abs(frame.rgb - source)
            store.add(frame, residual.mean(-1))
            alpha, rgb = to_8_bit(frame.coverage), to_8_bit(frame.rgb)
            videos.write("reconstruction", rgb)
            videos.write("alpha", alpha)
            if (mask := clip.read_merged_mask(frame.t)) is not None:
                videos.write("alpha_vs_mask_rcnn", np.hstack((alpha, mask)))
            videos.write("residuals", to_8_bit(residual))
            write_uv_videos(videos, frame, source)
            if frame.t == len(clip) // 2:
                pictures |= {"input": source_image, "reconstruction": rgb, "alpha": alpha}
            if frame.t == 0:
                pictures |= {"first input": source_image, "first": rgb}
            if frame.t == len(clip) - 1:
                pictures["last"] = rgb
    return per_frame, pictures


def write_uv_videos(videos: VideoSet, frame: Frame, source: Floats) -> None:
    """Add one frame to the videos of each mapping: uv as colours, and a checkerboard over the layer.

    source: (H, W, 3) in [0, 1], the frame of the clip.
    """
    for number, (uv, visibility) in enumerate(zip(frame.uv, frame.visibility, strict=True), 1):
        colors = uv_colors(uv)
        videos.write(f"uv_{number}", to_8_bit(colors))
        if number < len(frame.uv):
            videos.write(f"uv_{number}_masked", to_8_bit(colors * visibility[..., None]))
        squares = checkerboard(uv)
        edit = np.dstack((squares, np.ones_like(squares[..., :1])))
        videos.write(f"checkerboard_{number}", to_8_bit(apply_edits(source, [(edit, visibility)])))


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


def write_letter_videos(
    run: TrainedRun, folder: Path, store: FrameStore, views: list[AtlasView], atlases: list[Pixels]
) -> dict[str, float]:
    """Print letters on each atlas and write the atlases and videos with the letters.

    There are videos of each layer's letters over the frames, of all letters over the frames, and of each layer alone.
    Returns `edit_warp_error`, how steady the letters are along the flow, or an empty dict if the clip has no flow.
    """
    clip, letters = run.clip, letter_pattern(ATLAS_SIZE_PX)
    everywhere = np.ones_like(letters[..., 3])
    printed_atlases = [apply_edits(atlas.astype(np.float32) / 255, [(letters, everywhere)]) for atlas in atlases]
    for number, atlas in enumerate(printed_atlases, 1):
        write_png(folder / f"texture_edit{number}.png", to_8_bit(atlas))
    pattern, textures = torch.from_numpy(letters), [torch.from_numpy(atlas) for atlas in printed_atlases]
    has_flow = clip.sibling_folder("_flow").is_dir()
    edited_frames: deque[Floats] = deque(maxlen=2)  # the last two edited frames
    errors: list[float] = []
    with VideoSet(folder, clip.name, clip.fps) as videos:
        for frame in tqdm(store.frames(), total=len(clip), desc="printing letters", unit="frame"):
            source: Floats = clip.frame(frame.t).astype(np.float32) / 255
            edits: list[tuple[Floats, Floats]] = []
            for number, atlas_uv in enumerate(compute_atlas_uv(run.model, frame), 1):
                texels = views[number - 1].to_pixels(atlas_uv, ATLAS_SIZE_PX)
                edits.append((sample_image(pattern, texels).numpy(), frame.visibility[number - 1]))
                videos.write(f"edited{number}", to_8_bit(apply_edits(source, edits[-1:], frame.light)))
                videos.write(f"edited{number}_tex", to_8_bit(sample_image(textures[number - 1], texels).numpy()))
            edited_frames.append(apply_edits(source, edits, frame.light))
            videos.write("edit", to_8_bit(edited_frames[-1]))
            if has_flow and len(edited_frames) > 1:
                flow, back_flow = clip.flow_pair(frame.t - 1)
                earlier, later = edited_frames
                error = warp_error(earlier, later, flow, consistent_pixels(flow, back_flow))
                if error is not None:
                    errors.append(error)
    return {"edit_warp_error": round(float(np.mean(errors)), 6)} if errors else {}
