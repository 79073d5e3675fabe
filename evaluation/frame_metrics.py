"""Metrics of a run on its clip: of each frame, of the atlases and mappings, and of the process."""

import math
import sys

import numpy as np
from torch import Tensor

from evaluation.image_metrics import load_lpips, psnr, ssim
from evaluation.mapping_metrics import RigiditySums, summarize_rigidity
from evaluation.mask_metrics import boundary_f, iou
from implicit_neural_networks import Layers, Model
from media import Pixels, to_8_bit
from media.clip import Clip
from rendering.atlas_view import AtlasView, measure_texel_visibility, render_atlas
from rendering.frame_store import FrameStore
from rendering.frames import VISIBLE, Floats, Frame

ATLAS_SIZE_PX = 1000  # Side of the atlas images, as published.


def measure_frame(clip: Clip, frame: Frame, source: Floats) -> dict[str, float]:
    """Return the metrics of a rendered frame by name. source: the frame of the clip, (H, W, 3) in [0, 1].

    These are PSNR (dB) and SSIM; PSNR without light (`psnr_unlit`) if the model has light; LPIPS if its weights are
    installed; and J (`iou`) and F (`boundary_f`) of DAVIS for the opacity if the clip has true masks in `NAME_gt`.
    """
    metrics = {"psnr": psnr(frame.rgb, source), "ssim": ssim(frame.rgb, source)}
    if frame.unlit is not None:
        metrics["psnr_unlit"] = psnr(frame.unlit, source)
    if (lpips := load_lpips()) is not None:
        metrics["lpips"] = lpips(frame.rgb, source)
    if clip.true_masks is not None:
        mask, true_mask = frame.coverage > VISIBLE, clip.mask(clip.true_masks[frame.t]) > 127
        metrics |= {"iou": iou(mask, true_mask), "boundary_f": boundary_f(mask, true_mask)}
    return metrics


def mean_metrics(per_frame: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean over the frames of each metric."""
    return {name: round(float(np.mean(values)), 6) for name, values in per_frame.items()}


def render_visible_atlases(
    model: Model, store: FrameStore, views: list[AtlasView], size: int = ATLAS_SIZE_PX
) -> tuple[list[Pixels], list[Tensor]]:
    """Render the atlas image of each layer where it is visible in some frame; it is black elsewhere.

    views: the part of the shared atlas that each image shows. size: side of the images in pixels. Returns the images
    (size, size, 3), and the largest visibility of each texel in any frame, (size, size) for each layer.
    """
    texel_visibility = [measure_texel_visibility(model, store, layer, view, size) for layer, view in enumerate(views)]
    atlases = [
        to_8_bit(render_atlas(model, view, size, visibility.numpy() > VISIBLE))
        for view, visibility in zip(views, texel_visibility, strict=True)
    ]
    return atlases, texel_visibility


def measure_atlases(store: FrameStore, texel_visibility: list[Tensor], px_per_uv: list[float]) -> dict[str, float]:
    """Return the metrics of each layer's atlas and mapping by name.

    These are the part of the atlas image that is visible in some frame (`atlas_use_LAYER`), and the rigidity of the
    mapping where the layer is visible (see `summarize_rigidity`). texel_visibility: from `render_visible_atlases`.
    px_per_uv: pixels per unit of uv for each layer.
    """
    metrics = {}
    names = Layers.for_objects(len(texel_visibility) - 1).names
    for layer, (name, visibility) in enumerate(zip(names, texel_visibility, strict=True)):
        metrics[f"atlas_use_{name}"] = float((visibility > VISIBLE).float().mean())

        def sum_rigidity(frame: Frame, layer: int = layer) -> RigiditySums:
            return RigiditySums.of_mapping(frame.uv[layer], frame.visibility[layer] > VISIBLE, px_per_uv[layer])

        for kind, value in summarize_rigidity(store.map(sum_rigidity)).items():
            if math.isfinite(value):  # It is NaN for a layer that no frame shows.
                metrics[f"{kind}_{name}"] = value
    return {name: round(value, 6) for name, value in metrics.items()}


def peak_memory_mb() -> float | None:
    """Return the largest memory of this process so far, without video encoders; None if the system cannot tell."""
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None
    units_per_mb = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_mb, 1)
