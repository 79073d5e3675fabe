"""Atlases to paint on: cropped to what is visible, as fine as the video, learned and sampled from the frames."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

import media
from command_line import UserError, warn
from editing.atlas_file import AtlasFile, LayerImage, checkpoint_fingerprint, write_atlas_file
from editing.layered_files import ATLAS_LAYER, GUIDE_LAYER, PAINT_LAYER
from export.openraster import write_openraster
from export.photoshop import write_psd
from grids.looks import space_looks
from grids.unwrap import fill_unknown
from media import Pixels, to_8_bit
from media.clip import evenly_spaced_indices
from media.contact_sheet import contact_rows
from parallel.side_by_side import run_side_by_side, stream_side_by_side
from rendering.atlas_view import AtlasView, compute_atlas_uv, measure_texel_visibility, render_atlas
from rendering.blending import LUMA
from rendering.frame_store import FrameStore, open_frame_store
from rendering.frames import VISIBLE, Floats, Frame
from rendering.halo import coverage_in_front, in_halo
from rendering.inverse import field_jacobian, invert_uv_field
from rendering.resampling import Box, sample_field
from rendering.trained_run import TrainedRun

LARGEST_SIDE_PX = 8192  # Largest side of an atlas image, in pixels.
STEP_QUANTILE = 0.05  # Share of the pixels that may be finer in the video than in the atlas image.
SAMPLED_FRAMES = 24  # Most frames from which an atlas is sampled, evenly spread over the clip.
LOOK_SAMPLED_FRAMES = 5  # The same for a look, spread over half of the frames to the looks beside it.
SAMPLES_BYTES = 600_000_000  # Memory for samples; fewer frames are sampled if the atlas is large.
CHUNK_SAMPLES = 1e6  # Samples that are averaged at once by one core.
LEAST_UV_STEP = 1e-9  # Least step of uv per pixel; it is 0 where a mapping is folded.
MARGIN_PX = 4  # Pixels of the atlas image around the part that is visible in frames.
LUMINANCE_TOLERANCE = 10 / 255  # A sample counts if its luminance differs by at most this from the median.
HALO_WEIGHT = 1e-3  # Weight of pixels that an object in front may tint; they count where nothing else shows a texel.
LEAST_LIGHT = 0.1  # Least factor of light by which colours are divided.
OUTLINED_FRAMES = 3  # Frames whose outlines the guide shows.
GRID_PX = 100  # Distance of the lines of the guide, in pixels.
GUIDE_COLOR, GRID_COLOR = (255, 40, 160, 160), (120, 120, 120, 60)  # RGBA, 0 to 255
SHEET_PX = 480  # Height of a picture in atlases.png and looks.png, in pixels.
LOOK_COLUMNS = 4  # Pictures beside each other in looks.png.


@dataclass
class LayerAtlas:
    """The pictures of one layer's atlas, h x w pixels."""

    image: LayerImage
    visibility: Floats  # (h, w) largest visibility of each texel in any frame
    learned: Floats  # (h, w, 3) in [0, 1]: the atlas of the model
    sampled: Floats  # (h, w, 3) in [0, 1]: colours of the frames; those of the model where no frame shows the texel
    guide: Pixels  # (h, w, 4)

    @cached_property
    def is_sampled_sharper(self) -> bool:
        """Whether the sampled atlas is sharper than the learned one."""
        return sharpness(self.sampled, self.visibility) > sharpness(self.learned, self.visibility)


def export_atlases(
    run: TrainedRun,
    folder: Path,
    resolution: int | None,
    padding_px: int,
    bits: int,
    room_px: int = 0,
    formats: Sequence[str] = ("ora",),
    look_frames: int = 0,
) -> AtlasFile:
    """Write the atlases of all layers, their guides and layered files, atlases.png and atlas.json into `folder`.

    resolution: longer side of each image in pixels; None: as fine as the video. padding_px: pixels by which the opaque
    part extends beyond the visible texels. bits: 8 or 16 per channel of the atlas. room_px: empty pixels around what is
    visible of an object, for paint that is attached to it. formats: of the layered files, "ora" and "psd".
    look_frames: also write how each atlas looks around some frames, about so many frames apart; 0: no looks. Layers
    that no frame shows are left out with a warning. Raises UserError if no layer is visible.
    """
    images, looks, sheet, look_sheet = [], [], {}, {}
    with open_frame_store(run, folder) as store:
        for layer in run.model.layers:
            name = layer.name
            margin_px = MARGIN_PX + (0 if layer.is_background else room_px)
            image = plan_layer_image(run, store, layer.index, f"{name}.png", resolution, padding_px, margin_px)
            if image is None:
                warn(f"the {name} is visible in no frame; it is left out")
                continue
            atlas = make_layer_atlas(run, store, image)
            write_layer_atlas(folder, name, atlas, padding_px, bits, formats)
            images.append(image)
            kind = "sampled from the frames" if atlas.is_sampled_sharper else "learned"
            print(f"{name}: {image.width} x {image.height}, {kind} (the sharper of the two)")
            sheet[f"{name}, learned"] = show_on_white(atlas.learned, atlas.visibility)
            sheet[f"{name}, sampled"] = show_on_white(atlas.sampled, atlas.visibility)
            for t in sorted({round(center) for center in space_looks(store.count, look_frames)}):
                look = make_look(run, store, image, t, look_frames)
                if look is None:
                    continue
                write_paint_files(
                    folder, Path(look.image.image).stem, look.rgba(padding_px), atlas.guide, bits, formats
                )
                looks.append(look.image)
                look_sheet[f"{name}, frame {t}"] = show_on_white(look.sampled, look.visibility)
    if not images:
        raise UserError(f"{run.checkpoint.parent}: no layer is visible in any frame, nothing to export; train again")
    atlas_file = AtlasFile(run.name, checkpoint_fingerprint(run.checkpoint), images, looks)
    write_atlas_file(folder, atlas_file)
    media.write_png(folder / "atlases.png", contact_rows(sheet, 2, height=SHEET_PX))
    if look_sheet:
        media.write_png(folder / "looks.png", contact_rows(look_sheet, LOOK_COLUMNS, height=SHEET_PX))
    return atlas_file


def plan_layer_image(
    run: TrainedRun, store: FrameStore, layer: int, name: str, resolution: int | None, padding_px: int, margin_px: int
) -> LayerImage | None:
    """Return the size of a layer's image and the part of the layer's square that it covers.

    It covers the part that is visible in frames, and margin_px pixels around it. Its resolution is that of the frames
    at native size, or such that the longer side has `resolution` pixels. Returns None if the layer is visible in no
    frame.
    """
    measured_frames = evenly_spaced_indices(store.count, SAMPLED_FRAMES)
    extents = store.map(lambda frame: measure_extent(frame, layer, frame.t in measured_frames))
    extent_uv = reduce(LayerExtent.join, (extent for extent in extents if extent is not None), LayerExtent())
    return plan_image(run, extent_uv, layer, name, resolution, padding_px, margin_px)


@dataclass
class LayerExtent:
    """The part of a layer's square that frames show, and how far uv goes from pixel to pixel there."""

    low: Floats = field(default_factory=lambda: np.full(2, np.inf))  # smallest (u, v)
    high: Floats = field(default_factory=lambda: np.full(2, -np.inf))  # largest (u, v)
    steps: Floats = field(default_factory=lambda: np.empty(0, np.float32))  # (n,) of some visible pixels

    def join(self, other: "LayerExtent") -> "LayerExtent":
        """Return the extent of both together."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return LayerExtent(low, high, np.concatenate((self.steps, other.steps)))


def measure_extent(frame: Frame, layer: int, with_steps: bool) -> LayerExtent | None:
    """Return the extent of a layer in a frame, if asked for with its steps; None if it is not visible there."""
    is_visible = frame.visibility[layer] > VISIBLE
    if not is_visible.any():
        return None
    uv = frame.uv[layer][is_visible]
    steps = uv_step(frame.uv[layer])[is_visible] if with_steps else np.empty(0, np.float32)
    return LayerExtent(uv.min(0), uv.max(0), steps)


def plan_image(
    run: TrainedRun,
    measured: LayerExtent,
    layer: int,
    name: str,
    resolution: int | None = None,
    padding_px: int = 0,
    margin_px: int = MARGIN_PX,
    largest_side_px: int = LARGEST_SIDE_PX,
) -> LayerImage | None:
    """Return the size of a layer's image from the layer's extent; see `plan_layer_image`."""
    if not len(measured.steps):
        return None
    extent = (measured.high - measured.low).clip(1e-6, None)
    if resolution is None:
        step = float(np.quantile(measured.steps, STEP_QUANTILE)) / run.clip.native_scale[0]
        if extent.max() / step > largest_side_px:
            step = float(extent.max()) / largest_side_px
            warn(f"{name}: limited to {largest_side_px} px, so some parts are coarser than in the video")
    else:
        step = float(extent.max()) / max(resolution - 1 - 2 * margin_px, 1)
    width, height = (np.ceil(extent / step).astype(int) + 1 + 2 * margin_px).tolist()
    u, v = (measured.low - margin_px * step).tolist()
    projection, units = run.model.projection(layer), run.model.uv_units(layer)
    return LayerImage(name, layer, width, height, u, v, step, padding_px, projection, units)


def uv_step(uv: Floats) -> Floats:
    """Return how far uv (H, W, 2) goes per pixel, (H, W): the side of a square with the area that a pixel covers.

    The side of a square of the same area is taken because the step in one direction can be almost 0 where the mapping
    compresses it. An atlas image as fine as that step would be many times larger than the frames.
    """
    jacobian = field_jacobian(uv)
    determinant = jacobian[..., 0, 0] * jacobian[..., 1, 1] - jacobian[..., 0, 1] * jacobian[..., 1, 0]
    return np.sqrt(np.maximum(np.abs(determinant), LEAST_UV_STEP**2))


def make_layer_atlas(run: TrainedRun, store: FrameStore, image: LayerImage) -> LayerAtlas:
    """Render and sample all pictures of one layer."""
    size = (image.width, image.height)
    view = image.view(run.model, size, None)
    visibility = measure_image_visibility(run, store, image, view)
    learned = render_atlas(run.model, view, size)
    sampled, is_sampled = sample_atlas(run, store, image, view, evenly_spaced_indices(store.count, SAMPLED_FRAMES))
    sampled = np.where(is_sampled[..., None], sampled, learned)
    return LayerAtlas(image, visibility, learned, sampled, draw_guide(run, store, image, view))


@dataclass
class LookPicture:
    """How the atlas of one layer looks around a frame, h x w pixels."""

    image: LayerImage
    visibility: Floats  # (h, w): 1 where a frame near it shows the texel, else 0
    sampled: Floats  # (h, w, 3) in [0, 1]

    def rgba(self, padding_px: int) -> Floats:
        """Return the picture with its opacity, (h, w, 4); see `join_opacity`."""
        return join_opacity(self.sampled, self.visibility, padding_px)


def make_look(run: TrainedRun, store: FrameStore, image: LayerImage, t: int, look_frames: int) -> LookPicture | None:
    """Sample how a layer's atlas looks around frame t; None if no frame near it shows the layer.

    image: of the atlas, which has the same size and place. look_frames: frames from look to look.
    """
    first, last = max(0, t - look_frames // 4), min(store.count - 1, t + look_frames // 4)
    frames = [first + index for index in evenly_spaced_indices(last - first + 1, LOOK_SAMPLED_FRAMES)]
    view = image.view(run.model, (image.width, image.height), None)
    sampled, is_sampled = sample_atlas(run, store, image, view, frames)
    if not is_sampled.any():
        return None
    name = f"{Path(image.image).stem}_look_{t:03d}.png"
    return LookPicture(replace(image, image=name, look=t), is_sampled.astype(np.float32), sampled)


def measure_image_visibility(run: TrainedRun, store: FrameStore, image: LayerImage, view: AtlasView) -> Floats:
    """Return the largest visibility of each texel of an atlas image in any frame, (h, w).

    Where the image is finer than the working size, it is measured on a smaller image: it is not known more finely.
    """
    texels_per_px = 1 / (run.px_per_uv[image.layer] * image.uv_per_pixel)
    scale = max(1, int(min(texels_per_px, run.clip.native_scale[0])))
    small_size = (max(2, (image.width - 1) // scale + 1), max(2, (image.height - 1) // scale + 1))
    visibility = measure_texel_visibility(run.model, store, image.layer, view, small_size)[None, None]
    shape = (image.height, image.width)
    return functional.interpolate(visibility, shape, mode="bilinear", align_corners=True)[0, 0].numpy()


def sample_atlas(
    run: TrainedRun, store: FrameStore, image: LayerImage, view: AtlasView, frames: Sequence[int]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Sample an atlas from frames: (h, w, 3) in [0, 1], and whether any of them shows a texel (h, w).

    Each texel takes the weighted mean of the samples whose luminance is close to their weighted median. Sharp views of
    a texel have the largest weights. The light of the frames is divided out. Of frames that are too many for the
    memory, an even part is taken.
    """
    height, width = image.height, image.width
    most_frames = max(5, int(SAMPLES_BYTES / (height * width * 5)))
    frames = [frames[index] for index in evenly_spaced_indices(len(frames), most_frames)]
    colors = np.zeros((len(frames), height, width, 3), np.uint8)
    weights = np.zeros((len(frames), height, width), np.float16)

    def sample_frame(number: int) -> None:
        """Write the samples of one frame into `colors` and `weights`."""
        frame = store.frame(frames[number])
        if (box := visible_box(run, frame, image, view)) is not None:
            colors[number][box], weights[number][box] = warp_frame_to_atlas(run, frame, image, view, box)

    def average_rows(top: int) -> Floats:
        """Return the sampled atlas in some rows."""
        part = slice(top, top + rows)
        return mean_near_median(colors[:, part], weights[:, part].astype(np.float32))

    sampling = stream_side_by_side(sample_frame, range(len(frames)))
    with closing(sampling):
        for _ in tqdm(sampling, total=len(frames), desc=f"sampling the {Path(image.image).stem}", unit="frame"):
            pass
    rows = max(1, int(CHUNK_SAMPLES / (len(frames) * width)))
    sampled = np.concatenate(list(stream_side_by_side(average_rows, range(0, height, rows))))
    return sampled, np.any(weights > 0, axis=0)


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
    return to_8_bit(color), weight.astype(np.float16)


def mean_near_median(colors: Pixels, weights: Floats) -> Floats:
    """Return the weighted mean of the samples whose luminance is close to the weighted median, (h, w, 3) in [0, 1].

    colors (K, h, w, 3) and weights (K, h, w): K samples of each texel.
    """
    luminance = (colors.astype(np.float32) / 255) @ LUMA
    order = luminance.argsort(axis=0)
    cumulative = np.take_along_axis(weights, order, 0).cumsum(axis=0)
    middle = (cumulative < 0.5 * cumulative[-1]).sum(axis=0).clip(0, len(colors) - 1)
    median = np.take_along_axis(np.take_along_axis(luminance, order, 0), middle[None], 0)
    near_weights = weights * (np.abs(luminance - median) <= LUMINANCE_TOLERANCE)
    total = np.einsum("khw,khwc->hwc", near_weights, colors.astype(np.float32) / 255)
    return total / np.maximum(near_weights.sum(0), 1e-6)[..., None]


def sharpness(picture: Floats, visibility: Floats) -> float:
    """Return the mean gradient of the luminance of a picture (h, w, 3) inside its visible part."""
    luminance, is_visible = picture @ LUMA, visibility > VISIBLE
    is_inner = cv2.erode(is_visible.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if not is_inner.any():
        return 0.0
    gradient = np.hypot(np.gradient(luminance, axis=0), np.gradient(luminance, axis=1))
    return float(gradient[is_inner].mean())


def draw_guide(run: TrainedRun, store: FrameStore, image: LayerImage, view: AtlasView) -> Pixels:
    """Draw a faint grid and the outlines of some frames, (h, w, 4), transparent elsewhere."""
    guide = np.zeros((image.height, image.width, 4), np.uint8)
    for position in range(GRID_PX, max(image.width, image.height), GRID_PX):
        guide[:, position : position + 1] = GRID_COLOR
        guide[position : position + 1] = GRID_COLOR
    for t in evenly_spaced_indices(store.count, OUTLINED_FRAMES):
        atlas_uv = compute_atlas_uv(run.model, store.frame(t))[image.layer]
        texels = view.to_pixels(atlas_uv, (image.width, image.height)).numpy()
        border = np.concatenate([texels[0], texels[1:, -1], texels[-1, -2::-1], texels[-2:0:-1, 0]])
        outline = np.rint(border).clip(-30000, 30000).astype(np.int32)  # OpenCV draws within 16 bits
        cv2.polylines(guide, [outline[:, None]], True, GUIDE_COLOR, 1)
        text_corner = tuple(int(value) for value in outline[0] + [6, 18])
        cv2.putText(guide, f"frame {t}", text_corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, GUIDE_COLOR, 1)
    return guide


def write_layer_atlas(
    folder: Path, name: str, atlas: LayerAtlas, padding_px: int, bits: int, formats: Sequence[str]
) -> None:
    """Write the pictures of a layer, and layered files with the atlas, the guide and an empty layer to paint on."""
    learned, sampled = (
        join_opacity(picture, atlas.visibility, padding_px) for picture in (atlas.learned, atlas.sampled)
    )
    run_side_by_side(
        lambda: write_paint_files(
            folder, name, sampled if atlas.is_sampled_sharper else learned, atlas.guide, bits, formats
        ),
        lambda: media.write_png(folder / f"{name}_learned.png", to_8_bit(learned)),
        lambda: media.write_png(folder / f"{name}_sampled.png", to_8_bit(sampled)),
        lambda: media.write_png(folder / f"{name}_guide.png", atlas.guide),
    )


def write_paint_files(folder: Path, name: str, rgba: Floats, guide: Pixels, bits: int, formats: Sequence[str]) -> None:
    """Write a picture (h, w, 4) to paint on, and layered files with it, its guide and an empty layer to paint on."""
    path, pixels, empty = folder / f"{name}.png", to_8_bit(rgba), np.zeros_like(guide)
    writers = [lambda: media.write_png(path, pixels if bits == 8 else media.from_display(rgba, np.uint16))]
    if "ora" in formats:
        layers = {PAINT_LAYER: empty, GUIDE_LAYER: guide, ATLAS_LAYER: pixels}
        writers.insert(0, lambda: write_openraster(path.with_suffix(".ora"), layers))
    if "psd" in formats:
        deep = {PAINT_LAYER: empty / 255, GUIDE_LAYER: guide / 255, ATLAS_LAYER: rgba}
        writers.insert(0, lambda: write_psd(path.with_suffix(".psd"), deep, bits))
    run_side_by_side(*writers)


def join_opacity(picture: Floats, visibility: Floats, padding_px: int) -> Floats:
    """Return a picture (h, w, 3) that is opaque where it is visible, and up to padding_px around that, (h, w, 4)."""
    return np.dstack((extend_colors(picture, visibility), visible_opacity(visibility, padding_px)))


def visible_opacity(visibility: Floats, padding_px: int) -> Floats:
    """Return 1 where a texel is visible or at most padding_px from a visible one, and 0 elsewhere, (h, w)."""
    opacity = (visibility > VISIBLE).astype(np.float32)
    if not padding_px:
        return opacity
    side = 2 * padding_px + 1
    dilated = cv2.dilate(opacity, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return np.asarray(dilated, np.float32)


def extend_colors(picture: Floats, visibility: Floats) -> Floats:
    """Continue the colours of a picture (h, w, 3) beyond its visible part.

    So programs that resample the picture do not blend its border with black.
    """
    values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    known = torch.from_numpy((visibility > VISIBLE).astype(np.float32))[None, None]
    return fill_unknown(values, known)[0].permute(1, 2, 0).numpy()


def show_on_white(picture: Floats, visibility: Floats) -> Pixels:
    """Return the visible part of a picture (h, w, 3), on white."""
    is_visible = (visibility > VISIBLE)[..., None]
    return to_8_bit(np.where(is_visible, picture, 1.0))
