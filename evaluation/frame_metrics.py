"""Figures of a run on its clip: of each frame, of the atlases and mappings, of the process."""

import math
import sys

import numpy as np
import torch

from evaluation.image_metrics import load_lpips, psnr, ssim
from evaluation.mapping_metrics import rigidity_summary
from evaluation.mask_metrics import boundary_f, iou
from implicit_neural_networks import Layers, Model
from media import Pixels, to_8_bit
from media.clip import Clip
from rendering.atlas_view import AtlasView, atlas_uv, mark_visible_texels, render_atlas
from rendering.frame_store import FrameStore
from rendering.frames import VISIBLE, Frame

ATLAS_SIZE_PX = 1000  # side of the atlas images, as published


def measure_frame(clip: Clip, frame: Frame) -> dict[str, float]:
    """PSNR and SSIM of a rendered frame, PSNR without its light where it has one; LPIPS where its weights are at hand.

    With true masks in `NAME_gt` also DAVIS' J (`iou`) and F (`boundary_f`) of its opacity.
    """
    source = clip.frame(frame.t).astype(np.float32) / 255
    figures = {"psnr": psnr(frame.rgb, source), "ssim": ssim(frame.rgb, source)}
    if frame.unlit is not None:
        figures["psnr_unlit"] = psnr(frame.unlit, source)
    if (lpips := load_lpips()) is not None:
        figures["lpips"] = lpips(frame.rgb, source)
    if clip.true_masks is not None:
        opaque, truth = frame.coverage > VISIBLE, clip.mask(clip.true_masks[frame.t]) > 127
        figures |= {"iou": iou(opaque, truth), "boundary_f": boundary_f(opaque, truth)}
    return figures


def mean_metrics(per_frame: dict[str, list[float]]) -> dict[str, float]:
    """Mean of each list."""
    return {name: round(float(np.mean(values)), 6) for name, values in per_frame.items()}


def render_seen_atlases(
    model: Model, store: FrameStore, views: list[AtlasView], size: int = ATLAS_SIZE_PX
) -> tuple[list[Pixels], list[torch.Tensor]]:
    """The atlas images (S, S, 3), black where no frame sees them, and with what share each texel is seen (S, S)."""
    seen = [torch.zeros(size, size) for _ in views]
    for frame in store.frames():
        shares = torch.from_numpy(frame.visibility)
        for layer, places in enumerate(atlas_uv(model, frame)):
            mark_visible_texels(seen[layer], views[layer], places, shares[layer])
    atlases = [
        to_8_bit(render_atlas(model, view, size, share.numpy() > VISIBLE))
        for view, share in zip(views, seen, strict=True)
    ]
    return atlases, seen


def measure_atlases(store: FrameStore, seen: list[torch.Tensor], px_per_uv: list[float]) -> dict[str, float]:
    """Of each layer: the share of its atlas image that is ever seen, and how rigid its mapping is where it shows."""
    figures = {}
    for layer, (name, share) in enumerate(zip(Layers.for_objects(len(seen) - 1).names, seen, strict=True)):
        figures[f"atlas_use_{name}"] = float((share > VISIBLE).float().mean())
        fields = ((frame.uv[layer], frame.visibility[layer] > VISIBLE) for frame in store.frames())
        for kind, value in rigidity_summary(fields, px_per_uv[layer]).items():
            if math.isfinite(value):  # not of a layer that no frame shows
                figures[f"{kind}_{name}"] = value
    return {name: round(value, 6) for name, value in figures.items()}


def peak_memory_mb() -> float | None:
    """The most memory this process ever held; None where the system can't tell. Video encoders come on top."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
