"""Evaluation of a trained model: the published pictures and videos, figures, and a page that shows them.

Frames stream from `render_frames` through the writers. What later passes need of a frame, its places in the atlases
and its opacity, waits on disk.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from command_line import warn
from implicit_neural_networks import AtlasModel
from media import Pixels, VideoSet, to_8_bit, write_png, write_text
from metrics.image import psnr, ssim
from metrics.masks import iou
from rendering import (
    VISIBLE,
    AtlasView,
    Floats,
    Frame,
    FrameStore,
    atlas_image,
    atlas_places,
    composite,
    layer_views,
    mark_seen,
    render_frames,
    sample_image,
)
from reporting.error_maps import write_error_maps
from reporting.page import write_page
from reporting.patterns import checkerboard, letter_pattern, uv_colors
from reporting.plots import plot_per_frame
from unwrap_utils import Clip

ATLAS_SIZE_PX = 1000  # side of the atlas images, as published


@dataclass
class Evaluation:
    """What an evaluation found, for the log and the preview."""

    folder: Path
    metrics: dict
    atlases: list[Pixels]  # (S, S, 3) each, the foreground first
    pictures: dict[str, Pixels]  # input, reconstruction and opacity of the middle frame; first and last reconstruction


def evaluate(
    model: AtlasModel, clip: Clip, folder: Path, full_range: bool, opacity_images: bool = False, px_per_uv: float = 1.0
) -> Evaluation:
    """Write the published outputs of a model into `folder`, with metrics.json and index.html.

    px_per_uv scales the error maps (L / (2 * uv_mapping_scale)). opacity_images adds texture_orig*_alpha.png. With
    `NAME_gt` beside the clip, opacity is measured against it.
    """
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as kept:
        store = FrameStore(Path(kept))
        per_frame, pictures = write_reconstruction(model, clip, folder, full_range, store)
        views = layer_views(model, store.frames())
        atlases = write_atlases(model, store, views, folder, opacity_images)
        write_printed_videos(model, clip, folder, store, views, atlases)
        write_error_maps(clip, folder, store, px_per_uv)
    metrics = summary(per_frame) | {"seconds": round(time.perf_counter() - started, 2)}
    if (peak := peak_memory_mb()) is not None:
        metrics["peak_memory_mb"] = peak
    metrics["per_frame"] = per_frame
    plot_per_frame(folder / "quality.png", per_frame)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_page(folder, clip.name, metrics)
    return Evaluation(folder, metrics, atlases, pictures)


def summary(per_frame: dict[str, list[float]]) -> dict[str, float]:
    """Mean of each list of figures."""
    return {name: round(float(np.mean(values)), 6) for name, values in per_frame.items()}


def peak_memory_mb() -> float | None:
    """The most memory this process ever held, plus its largest helper process; None where the system can't tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    own, helper = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round((own + helper) / unit, 1)


def write_reconstruction(
    model: AtlasModel, clip: Clip, folder: Path, full_range: bool, store: FrameStore
) -> tuple[dict[str, list[float]], dict[str, Pixels]]:
    """Render the clip once: the videos that need colours, the figures of each frame, the store for later passes."""
    per_frame: dict[str, list[float]] = {"psnr": [], "ssim": []}
    if clip.truth is not None:
        per_frame["iou"] = []
    pictures: dict[str, Pixels] = {}
    progress = tqdm(render_frames(model, clip, full_range), total=len(clip), desc="rendering", unit="frame")
    with VideoSet(folder, clip.name, clip.fps) as videos:
        for frame in progress:
            source = clip.frame(frame.t)
            truth = source.astype(np.float32) / 255
            per_frame["psnr"].append(psnr(frame.rgb, truth))
            per_frame["ssim"].append(ssim(frame.rgb, truth))
            if clip.truth is not None:
                per_frame["iou"].append(iou(frame.coverage > VISIBLE, clip.mask(clip.truth[frame.t]) > 127))
            progress.set_postfix(psnr=f"{np.mean(per_frame['psnr']):.2f} dB")
            residual = np.abs(frame.rgb - truth)
            store.add(frame, residual.mean(-1))
            alpha, rgb = to_8_bit(frame.coverage), to_8_bit(frame.rgb)
            videos.write("reconstruction", rgb)
            videos.write("alpha", alpha)
            if clip.masks is not None:
                videos.write("alpha_vs_mask_rcnn", np.hstack((alpha, clip.mask(clip.masks[frame.t]))))
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
        videos.write(f"checkerboard_{number}", to_8_bit(composite(source, [(opaque(checkerboard(uv)), share)])))


def opaque(color: Floats) -> Floats:
    """RGB (H, W, 3) as RGBA that hides everything."""
    return np.dstack((color, np.ones_like(color[..., :1])))


def write_atlases(
    model: AtlasModel, store: FrameStore, views: list[AtlasView], folder: Path, opacity_images: bool
) -> list[Pixels]:
    """Write the atlas images, black where no frame sees them, and return them (S, S, 3), the foreground first."""
    seen = [torch.zeros(ATLAS_SIZE_PX, ATLAS_SIZE_PX) for _ in views]
    for frame in store.frames():
        shares = torch.from_numpy(frame.visibility)
        for layer, places in enumerate(atlas_places(model, frame)):
            mark_seen(seen[layer], views[layer], places, shares[layer])
    atlases = []
    for number, (view, share) in enumerate(zip(views, seen, strict=True), 1):
        visible = share.numpy() > VISIBLE
        if not visible.any() and number < len(views):
            warn(f"foreground {number} is visible in no frame: its atlas is black; check the rough masks")
        atlases.append(to_8_bit(atlas_image(model, view, ATLAS_SIZE_PX, visible)))
        write_png(folder / f"texture_orig{number}.png", atlases[-1])
        if opacity_images:
            with_opacity = np.dstack((atlases[-1], to_8_bit(share.numpy())))
            write_png(folder / f"texture_orig{number}_alpha.png", with_opacity)
    return atlases


def write_printed_videos(
    model: AtlasModel, clip: Clip, folder: Path, store: FrameStore, views: list[AtlasView], atlases: list[Pixels]
) -> None:
    """Letters printed on each atlas and carried through the video: over each layer, over all, and the layer bare."""
    letters = letter_pattern(ATLAS_SIZE_PX)
    printed = [
        composite(atlas.astype(np.float32) / 255, [(letters, np.ones_like(letters[..., 3]))]) for atlas in atlases
    ]
    for number, texture in enumerate(printed, 1):
        write_png(folder / f"texture_edit{number}.png", to_8_bit(texture))
    pattern, textures = torch.from_numpy(letters), [torch.from_numpy(texture) for texture in printed]
    with VideoSet(folder, clip.name, clip.fps) as videos:
        for frame in tqdm(store.frames(), total=len(clip), desc="printing letters", unit="frame"):
            source, edits = clip.frame(frame.t).astype(np.float32) / 255, []
            for number, places in enumerate(atlas_places(model, frame), 1):
                pixels = views[number - 1].pixels(places, ATLAS_SIZE_PX)
                edits.append((sample_image(pattern, pixels).numpy(), frame.visibility[number - 1]))
                videos.write(f"edited{number}", to_8_bit(composite(source, edits[-1:])))
                videos.write(f"edited{number}_tex", to_8_bit(sample_image(textures[number - 1], pixels).numpy()))
            videos.write("edit", to_8_bit(composite(source, edits)))
