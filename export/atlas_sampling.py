"""Sample atlases from the frames: each texel takes the colour that sharp views of it agree on."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import media
from alignment.motion_blur import measure_slopes
from editing.atlas_file import LayerImage
from media import Pixels, to_8_bit
from media.clip import evenly_spaced_indices
from parallel.side_by_side import stream_side_by_side
from rendering.atlas_view import AtlasView, compute_atlas_uv
from rendering.blending import LUMA
from rendering.frame_store import FrameStore
from rendering.frames import VISIBLE, Floats, Frame
from rendering.halo import coverage_in_front, in_halo
from rendering.inverse import field_jacobian, invert_uv_field
from rendering.resampling import Box, sample_field
from rendering.trained_run import TrainedRun

SAMPLES_BYTES = 600_000_000  # Memory for samples; fewer frames are sampled if the atlas is large.
CHUNK_SAMPLES = 1e6  # Samples that are averaged at once by one core.
LEAST_UV_STEP = 1e-9  # Least step of uv per pixel; it is 0 where a mapping is folded.
LUMINANCE_TOLERANCE = 10  # A sample counts if its luminance, 0 to 255, differs by at most this from the median.
HALO_WEIGHT = 1e-3  # Weight of pixels that an object in front may tint; they count where nothing else shows a texel.
SHARPNESS_POWER = 2  # A frame with motion blur has a weight that is this power of its sharpness.
SHARP_QUANTILE = 0.75  # Sharpness of the frames, as a quantile, from which on a frame has its full weight.
# Side of the window around a texel that a frame must show; outlines of masks are no slopes of the picture.
WHOLE_WINDOW_PX = 5
LEAST_WEIGHT = 1e-7  # Least weight of a sample that counts; 16-bit floats hardly hold smaller ones.
FEW_SAMPLES = 3  # Fewer samples of a texel cannot be said to agree or not.
LEAST_LIGHT = 0.1  # Least factor of light by which colours are divided.


@dataclass(frozen=True)
class SampledAtlas:
    """An atlas that is sampled from frames."""

    color: Floats  # (h, w, 3) in [0, 1]
    is_shown: NDArray[np.bool_]  # (h, w): whether any frame shows a texel
    agreement: float  # mean share, in [0, 1], of the weight of a texel's samples that are like its colour


def sample_atlas(
    run: TrainedRun, store: FrameStore, image: LayerImage, view: AtlasView, frames: Sequence[int], learned: Floats
) -> SampledAtlas:
    """Sample an atlas from frames.

    Each texel takes the weighted mean of the samples whose luminance is close to their weighted median. Sharp views of
    a texel have the largest weights. Frames with motion blur have less weight: their slopes are compared with those of
    the learned atlas (h, w, 3). The light of the frames is divided out. Of frames that are too many for the memory, an
    even part is taken.
    """
    height, width = image.height, image.width
    most_frames = max(5, int(SAMPLES_BYTES / (height * width * 5)))
    frames = [frames[index] for index in evenly_spaced_indices(len(frames), most_frames)]
    colors = np.zeros((len(frames), height, width, 3), np.uint8)
    weights = np.zeros((len(frames), height, width), np.float16)
    sharpness = np.zeros(len(frames), np.float32)  # 0 where a frame does not show the layer

    def sample_frame(number: int) -> None:
        """Write the samples of one frame into `colors` and `weights`."""
        frame = store.frame(frames[number])
        if (box := visible_box(run, frame, image, view)) is not None:
            colors[number][box], weights[number][box] = warp_frame_to_atlas(run, frame, image, view, box)
            is_shown = weights[number][box] > 0
            sharpness[number] = compare_sharpness(colors[number][box], to_8_bit(learned[box]), is_shown)

    def average_rows(top: int) -> tuple[Floats, Floats]:
        """Return the sampled atlas in some rows, and the shares of the samples that agree of texels with enough."""
        part = slice(top, top + rows)
        average, share = mean_near_median(colors[:, part], weights[:, part] * frame_weights)
        return average, share[(weights[:, part] > 0).sum(0) >= FEW_SAMPLES]

    sampling = stream_side_by_side(sample_frame, range(len(frames)))
    with closing(sampling):
        for _ in tqdm(sampling, total=len(frames), desc=f"sampling the {Path(image.image).stem}", unit="frame"):
            pass
    frame_weights = weigh_frames(sharpness)[:, None, None]
    rows = max(1, int(CHUNK_SAMPLES / (len(frames) * width)))
    averages, shares = zip(*stream_side_by_side(average_rows, range(0, height, rows)), strict=True)
    share = np.concatenate(shares)
    agreement = float(share.mean()) if len(share) else 1.0
    return SampledAtlas(np.concatenate(averages), np.any(weights > 0, axis=0), agreement)


def visible_box(run: TrainedRun, frame: Frame, image: LayerImage, view: AtlasView) -> Box | None:
    """Return the rows and columns of an atlas image that a frame shows; None if it does not show the layer."""
    is_visible = frame.visibility[image.layer] > VISIBLE
    if not is_visible.any():
        return None
    size, margin_px = (image.width, image.height), int(np.ceil(run.clip.native_scale[0]))
    texels = view.to_pixels(compute_atlas_uv(run.model, frame)[image.layer], size).numpy()[is_visible]
    low = np.floor(texels.min(0)).astype(int) - margin_px
    high = np.ceil(texels.max(0)).astype(int) + margin_px + 1
    columns, rows = (slice(max(0, low[axis]), max(1, min(size[axis], high[axis]))) for axis in (0, 1))
    return rows, columns


def warp_frame_to_atlas(
    run: TrainedRun, frame: Frame, image: LayerImage, view: AtlasView, box: Box
) -> tuple[Pixels, NDArray[np.float16]]:
    """Return the colours (h, w, 3) of a native frame on a box of an atlas image, and their weights (h, w).

    The weight is 0 where the frame does not show the texel. It is smaller where the layer is partly hidden, where an
    object in front is near, and where the frame is coarser than the atlas image. frame: of the working size, at which
    the mapping is inverted; only the colours are those of the frame's file.
    """
    layer, (rows, columns) = image.layer, box
    texels = view.to_pixels(compute_atlas_uv(run.model, frame)[layer], (image.width, image.height)).numpy()
    texels = texels - np.array([columns.start, rows.start], np.float32)
    positions, is_found = invert_uv_field(texels, (columns.stop - columns.start, rows.stop - rows.start))
    native_positions = run.clip.to_native_px(positions).astype(np.float32)
    picture = media.encode_picture(run.clip.native_frame(frame.t))
    color: Floats = media.to_display(sample_field(picture, native_positions, cv2.INTER_CUBIC))
    if frame.light is not None:
        color = color / np.maximum(sample_field(frame.light, positions), LEAST_LIGHT)
    visibility = sample_field(frame.visibility[layer], positions)
    step = uv_step(frame.uv[layer]) / run.clip.native_scale[0]
    relative_sharpness = 1 / np.maximum(step / image.uv_per_pixel, 1.0)
    is_tinted = in_halo(coverage_in_front(frame.alpha, layer), max(frame.alpha.shape[1:]))
    clearness = sample_field(np.where(is_tinted, HALO_WEIGHT, 1).astype(np.float32), positions)
    weight = np.where(
        is_found & (visibility > VISIBLE),
        visibility**4 * sample_field(relative_sharpness.astype(np.float32), positions) ** 4 * clearness,
        0,
    )
    return to_8_bit(color), np.where(weight > 0, np.maximum(weight, LEAST_WEIGHT), 0).astype(np.float16)


def compare_sharpness(picture: Pixels, learned: Pixels, is_shown: NDArray[np.bool_]) -> float:
    """Return how much steeper a frame's picture (h, w, 3) is than the learned atlas (h, w, 3), where it is shown.

    It is one number for the whole frame. A number for each texel would prefer what has edges, such as a shadow that
    passes. The learned atlas is the same for all frames, so frames that show different places can be compared.
    """
    window = np.ones((WHOLE_WINDOW_PX, WHOLE_WINDOW_PX), np.uint8)
    inner = cv2.erode(is_shown.astype(np.uint8), window) > 0
    greys: list[NDArray] = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (picture, learned)]
    own, usual = (float(np.trace(measure_slopes(grey, inner))) for grey in greys)
    return own / usual


def weigh_frames(sharpness: Floats) -> Floats:
    """Return the weights (K,) of frames by their sharpness (K,): 1 for sharp frames, less for those with motion blur.

    The sharpness is 0, and so is the weight, of a frame that does not show the layer.
    No frame gets more weight than other sharp ones, because one that shows what others do not may look the sharpest.
    """
    shown = sharpness[sharpness > 0]
    enough = np.quantile(shown, SHARP_QUANTILE) if len(shown) else 1.0
    return np.asarray(np.minimum(sharpness / enough, 1) ** SHARPNESS_POWER, np.float32)


def uv_step(uv: Floats) -> Floats:
    """Return how far uv (H, W, 2) goes per pixel, (H, W): the side of a square with the area that a pixel covers.

    The side of a square of the same area is taken because the step in one direction can be almost 0 where the mapping
    compresses it. An atlas image as fine as that step would be many times larger than the frames.
    """
    jacobian = field_jacobian(uv)
    determinant = jacobian[..., 0, 0] * jacobian[..., 1, 1] - jacobian[..., 0, 1] * jacobian[..., 1, 0]
    return np.sqrt(np.maximum(np.abs(determinant), LEAST_UV_STEP**2))


def mean_near_median(colors: Pixels, weights: Floats) -> tuple[Floats, Floats]:
    """Return the weighted mean of the samples whose luminance is close to the weighted median, (h, w, 3) in [0, 1].

    Also returns the share of the weight that these samples have, (h, w). colors (K, h, w, 3) and weights (K, h, w): K
    samples of each texel.
    """
    luminance = np.rint(colors @ LUMA).astype(np.uint8)
    median = find_median(luminance, weights)
    lowest, highest = (np.clip(median + sign * LUMINANCE_TOLERANCE, 0, 255) for sign in (-1, 1))
    near_weights = weights * ((luminance >= lowest) & (luminance <= highest))
    total, near = np.einsum("khw,khwc->hwc", near_weights, colors) / 255, near_weights.sum(0)
    tiny = np.finfo(np.float32).tiny
    return total / np.maximum(near, tiny)[..., None], near / np.maximum(weights.sum(0), tiny)


def find_median(values: Pixels, weights: Floats) -> NDArray[np.int64]:
    """Return the median (h, w) of values (K, h, w) with weights (K, h, w): values below it have less than half of them.

    Its eight bits are found from the highest to the lowest one, which takes less time and memory than sorting.
    """
    half = 0.5 * weights.sum(0)
    median = np.zeros(half.shape, np.int64)
    for bit in range(7, -1, -1):
        larger = median + (1 << bit)
        weight_below = (weights * (values < larger.astype(np.uint8))).sum(0)
        median = np.where(weight_below < half, larger, median)
    return median
