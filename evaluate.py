"""Evaluation of a trained model: the published pictures and videos, figures, and a page that shows them.

Frames stream from `render_frames` through the writers. What later passes need of a frame, its places in the atlases
and its opacity, waits on disk.
"""

import json
import tempfile
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
    render_seen_atlases,
)
from evaluation.page import write_page
from evaluation.patterns import checkerboard, letter_pattern, uv_colors
from evaluation.plots import plot_per_frame
from evaluation.temporal_metrics import warp_error
from media import Pixels, VideoSet, to_8_bit, write_png, write_text
from rendering.atlas_view import AtlasView, atlas_uv, fit_atlas_views
from rendering.blending import apply_edits
from rendering.frame_store import FrameStore
from rendering.frames import VISIBLE, Floats, Frame, render_frames
from rendering.resizing import sample_image
from rendering.trained_run import TrainedRun
from unwrap_utils import consistent_flow


@dataclass
class Evaluation:
    """What an evaluation found, for the log and the preview."""

    folder: Path
    metrics: dict
    atlases: list[Pixels]  # (S, S, 3) each, the foreground first
    pictures: dict[str, Pixels]  # input, reconstruction and opacity of the middle frame; first and last reconstruction


def evaluate(run: TrainedRun, folder: Path, opacity_images: bool = False) -> Evaluation:
    """Write the published outputs of a run into `folder`, with metrics.json and index.html.

    opacity_images adds texture_orig*_alpha.png. With `NAME_gt` beside the clip, opacity is measured against it.
    """
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as kept:
        store = FrameStore(Path(kept))
        per_frame, pictures = write_reconstruction(run, folder, store)
        views = fit_atlas_views(run.model, store.frames())
        atlases, seen = render_seen_atlases(run.model, store, views)
        write_atlases(atlases, seen, folder, opacity_images)
        letters = write_letter_videos(run, folder, store, views, atlases)
        write_error_maps(run.clip, folder, store, run.px_per_uv)
        metrics: dict[str, Any] = mean_metrics(per_frame) | letters | measure_atlases(store, seen, run.px_per_uv)
    metrics["seconds"] = round(time.perf_counter() - started, 2)
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
    """Render the clip once: write the videos that need colours, fill the store for later passes.

    Returns the metrics of every frame, and the pictures that an `Evaluation` holds.
    """
    clip = run.clip
    per_frame: dict[str, list[float]] = {}
    pictures: dict[str, Pixels] = {}
    progress = tqdm(render_frames(run.model, clip, run.full_range), total=len(clip), desc="rendering", unit="frame")
    with VideoSet(folder, clip.name, clip.fps) as videos:
        for frame in progress:
            source = clip.frame(frame.t)
            truth = source.astype(np.float32) / 255
            for name, value in measure_frame(clip, frame).items():
                per_frame.setdefault(name, []).append(value)
            progress.set_postfix(psnr=f"{np.mean(per_frame['psnr']):.2f} dB")
            residual = np.abs(frame.rgb - truth)
            store.add(frame, residual.mean(-1))
            alpha, rgb = to_8_bit(frame.coverage), to_8_bit(frame.rgb)
            videos.write("reconstruction", rgb)
            videos.write("alpha", alpha)
            if (mask := clip.read_merged_mask(frame.t)) is not None:
                videos.write("alpha_vs_mask_rcnn", np.hstack((alpha, mask)))
            videos.write("residuals", to_8_bit(residual))
            write_uv_videos(videos, frame, truth)
            if frame.t == len(clip) // 2:
                pictures |= {"input": source, "reconstruction": rgb, "alpha": alpha}
            if frame.t == 0:
                pictures |= {"first input": source, "first": rgb}
            if frame.t == len(clip) - 1:
                pictures["last"] = rgb
    return per_frame, pictures


def write_uv_videos(videos: VideoSet, frame: Frame, source: Floats) -> None:
    """The mappings as colours, and as a checkerboard laid over each layer."""
    shares = frame.visibility
    for number, (uv, share) in enumerate(zip(frame.uv, shares, strict=True), 1):
        colors = uv_colors(uv)
        videos.write(f"uv_{number}", to_8_bit(colors))
        if number < len(shares):
            videos.write(f"uv_{number}_masked", to_8_bit(colors * share[..., None]))
        videos.write(f"checkerboard_{number}", to_8_bit(apply_edits(source, [(opaque(checkerboard(uv)), share)])))


def opaque(color: Floats) -> Floats:
    """RGB (H, W, 3) as RGBA that hides everything."""
    return np.dstack((color, np.ones_like(color[..., :1])))


def write_atlases(atlases: list[Pixels], seen: list[Tensor], folder: Path, opacity_images: bool) -> None:
    """Write the atlas images (S, S, 3), and with opacity_images also see-through ones by how they are seen (S, S)."""
    for number, (atlas, share) in enumerate(zip(atlases, seen, strict=True), 1):
        if not (share > VISIBLE).any() and number < len(atlases):
            warn(f"object {number} shows in no frame, its atlas is black: train longer, or mend the rough masks")
        write_png(folder / f"texture_orig{number}.png", atlas)
        if opacity_images:
            write_png(folder / f"texture_orig{number}_alpha.png", np.dstack((atlas, to_8_bit(share.numpy()))))


def write_letter_videos(
    run: TrainedRun, folder: Path, store: FrameStore, views: list[AtlasView], atlases: list[Pixels]
) -> dict[str, float]:
    """Letters printed on each atlas and carried through the video: over each layer, over all, and the layer bare.

    Returns how steady the letters are along the flow, `edit_warp_error`, where the clip has flow.
    """
    clip, letters = run.clip, letter_pattern(ATLAS_SIZE_PX)
    printed = [
        apply_edits(atlas.astype(np.float32) / 255, [(letters, np.ones_like(letters[..., 3]))]) for atlas in atlases
    ]
    for number, texture in enumerate(printed, 1):
        write_png(folder / f"texture_edit{number}.png", to_8_bit(texture))
    has_flow = clip.sibling_folder("_flow").is_dir()
    edited: deque[Floats] = deque(maxlen=2)  # the last two frames
    errors: list[float | None] = []
    pattern, textures = torch.from_numpy(letters), [torch.from_numpy(texture) for texture in printed]
    with VideoSet(folder, clip.name, clip.fps) as videos:
        for frame in tqdm(store.frames(), total=len(clip), desc="printing letters", unit="frame"):
            source, edits = clip.frame(frame.t).astype(np.float32) / 255, []
            for number, places in enumerate(atlas_uv(run.model, frame), 1):
                pixels = views[number - 1].to_pixels(places, ATLAS_SIZE_PX)
                edits.append((sample_image(pattern, pixels).numpy(), frame.visibility[number - 1]))
                videos.write(f"edited{number}", to_8_bit(apply_edits(source, edits[-1:], frame.light)))
                videos.write(f"edited{number}_tex", to_8_bit(sample_image(textures[number - 1], pixels).numpy()))
            edited.append(apply_edits(source, edits, frame.light))
            videos.write("edit", to_8_bit(edited[-1]))
            if has_flow and len(edited) > 1:
                there, back = clip.flow_pair(frame.t - 1)
                errors.append(warp_error(*edited, there, consistent_flow(there, back)))
    known = [error for error in errors if error is not None]
    return {"edit_warp_error": round(float(np.mean(known)), 6)} if known else {}
