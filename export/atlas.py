"""Atlases to paint on: cropped to what is visible, as fine as the video, learned and sampled from the frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.nn import functional

import media
from command_line import UserError, warn
from editing.atlas_file import AtlasFile, LayerImage, checkpoint_fingerprint, write_atlas_file
from export.atlas_sampling import sample_atlas, uv_step
from export.looks import MOST_LOOKS, choose_look_frames, sample_looks, write_looks
from export.paint_files import join_opacity, show_on_white, write_paint_files
from media import Pixels, to_8_bit
from media.clip import evenly_spaced_indices
from media.contact_sheet import contact_rows
from parallel.side_by_side import run_side_by_side
from rendering.atlas_view import AtlasView, compute_atlas_uv, measure_texel_visibility, render_atlas
from rendering.blending import LUMA
from rendering.frame_store import FrameStore, open_frame_store
from rendering.frames import VISIBLE, Floats, Frame
from rendering.trained_run import TrainedRun

LARGEST_SIDE_PX = 8192  # Largest side of an atlas image, in pixels.
STEP_QUANTILE = 0.05  # Share of the pixels that may be finer in the video than in the atlas image.
SAMPLED_FRAMES = 24  # Most frames from which an atlas is sampled, evenly spread over the clip.
MARGIN_PX = 4  # Pixels of the atlas image around the part that is visible in frames.
# Share of samples that agree below which an object turns or has legs that move. On real clips it was .60 to .72 for
# five such objects, and .82 to .88 for four others, one of them with legs but little contrast.
LEAST_AGREEMENT = 0.77
SUGGESTED_LOOK_FRAMES = 12  # Frames between the looks of such an object, as they are suggested.
LEAST_NAMED_SHARE = 0.002  # Share of a background's atlas that objects hide in all frames, from which on it is named.
LEAST_OUTLINE_PX = 8  # Fewest pixels of an outline in the guide.
GRID_PX = 100  # Largest distance of the lines of the guide, in pixels.
GRID_CELLS = 4  # Fewest cells of the guide along the shorter side, so that a small atlas has lines, too.
GUIDE_COLORS = (255, 40, 160, 160), (0, 150, 255, 160), (255, 150, 0, 160)  # RGBA, 0 to 255, one per outlined frame
GRID_COLOR = (120, 120, 120, 60)
CAPTION_STEP_PX = 18  # Distance of the lines of text.
SHEET_PX = 480  # Height of a picture in atlases.png, in pixels.


@dataclass
class LayerAtlas:
    """The pictures of one layer's atlas, h x w pixels."""

    image: LayerImage
    visibility: Floats  # (h, w) largest visibility of each texel in any frame
    learned: Floats  # (h, w, 3) in [0, 1]: the atlas of the model
    sampled: Floats  # (h, w, 3) in [0, 1]: colours of the frames; those of the model where no frame shows the texel
    guide: Pixels  # (h, w, 4)
    agreement: float  # see `SampledAtlas`

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
    look_frames: also write how each atlas looks around some frames, about so many frames apart, see `export.looks`;
    0: no looks. Layers that no frame shows are left out with a warning. Raises UserError if no layer is visible.
    """
    images, looks, sheet = [], [], {}
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
            print(describe_atlas(name, atlas, layer.is_background))
            if not layer.is_background and not look_frames and atlas.agreement < LEAST_AGREEMENT:
                print(suggest_looks(name, store.count))
            sheet[f"{name}, learned"] = show_on_white(atlas.learned, atlas.visibility)
            sheet[f"{name}, sampled"] = show_on_white(atlas.sampled, atlas.visibility)
            pictures = sample_looks(run, store, image, atlas.learned, look_frames)
            looks += write_looks(folder, pictures, atlas.guide, padding_px, bits, formats)
    if not images:
        raise UserError(f"{run.checkpoint.parent}: no layer is visible in any frame, nothing to export; train again")
    atlas_file = AtlasFile(run.name, checkpoint_fingerprint(run.checkpoint), images, looks)
    write_atlas_file(folder, atlas_file)
    media.write_png(folder / "atlases.png", contact_rows(sheet, 2, height=SHEET_PX))
    return atlas_file


def describe_atlas(name: str, atlas: LayerAtlas, is_background: bool) -> str:
    """Return what a user should know of a layer's atlas, as one line of text."""
    kind = "sampled from the frames" if atlas.is_sampled_sharper else "learned"
    text = f"{name}: {atlas.image.width} x {atlas.image.height}, {kind} (the sharper of the two)"
    if is_background and (hidden := measure_holes(atlas.visibility)) >= LEAST_NAMED_SHARE:
        text += f"; {max(hidden, 0.01):.0%} of it is hidden by objects in all frames, so nothing is known there"
    return text


def measure_holes(visibility: Floats) -> float:
    """Return the share of an atlas, in [0, 1], that lies in holes of what is visible, (h, w)."""
    is_visible = (visibility > VISIBLE).astype(np.uint8)
    outlines = cv2.findContours(is_visible, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    whole = cv2.drawContours(is_visible.copy(), outlines, -1, 1, thickness=cv2.FILLED)
    return float(1 - is_visible.sum() / max(1, int(np.asarray(whole).sum())))


def suggest_looks(name: str, frames: int) -> str:
    """Return what to do if a layer looks different from frame to frame, as one line of text."""
    text = f"{name}: looks different from frame to frame, so parts of it may stand in its atlas twice"
    look_frames = max(SUGGESTED_LOOK_FRAMES, -(-frames // MOST_LOOKS))
    if not choose_look_frames(frames, look_frames):
        return text
    return f"{text}; --look_frames {look_frames} also writes how it looks around single frames"


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


def make_layer_atlas(run: TrainedRun, store: FrameStore, image: LayerImage) -> LayerAtlas:
    """Render and sample all pictures of one layer."""
    size = (image.width, image.height)
    view = image.view(run.model, size, None)
    visibility = measure_image_visibility(run, store, image, view)
    learned = render_atlas(run.model, view, size)
    frames = evenly_spaced_indices(store.count, SAMPLED_FRAMES)
    found = sample_atlas(run, store, image, view, frames, learned)
    sampled = np.where(found.is_shown[..., None], found.color, learned)
    return LayerAtlas(image, visibility, learned, sampled, draw_guide(run, store, image, view), found.agreement)


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


def sharpness(picture: Floats, visibility: Floats) -> float:
    """Return the mean gradient of the luminance of a picture (h, w, 3) inside its visible part."""
    luminance, is_visible = picture @ LUMA, visibility > VISIBLE
    is_inner = cv2.erode(is_visible.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if not is_inner.any():
        return 0.0
    gradient = np.hypot(np.gradient(luminance, axis=0), np.gradient(luminance, axis=1))
    return float(gradient[is_inner].mean())


def draw_guide(run: TrainedRun, store: FrameStore, image: LayerImage, view: AtlasView) -> Pixels:
    """Draw a faint grid and outlines of some frames, (h, w, 4), transparent elsewhere.

    In the background's guide they are the outlines of the frames, in an object's guide those of the object. Each frame
    has its colour, in which its number is written.
    """
    guide = np.zeros((image.height, image.width, 4), np.uint8)
    step = max(1, min(GRID_PX, min(image.width, image.height) // GRID_CELLS))
    for position in range(step, max(image.width, image.height), step):
        guide[:, position : position + 1] = GRID_COLOR
        guide[position : position + 1] = GRID_COLOR
    is_background = run.model.layers[image.layer].is_background
    numbers = [t for t in range(store.count) if is_background or (store.read(t, "alpha")[image.layer] > VISIBLE).any()]
    chosen = [numbers[index] for index in evenly_spaced_indices(len(numbers), len(GUIDE_COLORS))]
    for line, (t, color) in enumerate(zip(chosen, GUIDE_COLORS, strict=False), 1):
        frame = store.frame(t)
        shown = np.ones_like(frame.alpha[0]) if is_background else frame.visibility[image.layer]
        atlas_uv = compute_atlas_uv(run.model, frame)[image.layer]
        texels = view.to_pixels(atlas_uv, (image.width, image.height)).numpy()
        # OpenCV draws within 16 bits.
        outlines = [texels[y, x].round().clip(-30000, 30000).astype(np.int32) for x, y in find_outlines(shown)]
        for outline in outlines:
            cv2.polylines(guide, [outline[:, None]], True, color, 1)
        # Outlines of an object lie on each other, and so would their captions; these stand in the corner.
        corner = outlines[0][0] + [6, CAPTION_STEP_PX] if is_background else (4, line * CAPTION_STEP_PX)
        cv2.putText(guide, f"frame {t}", [int(value) for value in corner], cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1)
    return guide


def find_outlines(visibility: Floats) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the x and y of the pixels on each outline of what is visible, (H, W), the longest outline first.

    Specks, whose outlines are short, are left out.
    """
    is_visible = (visibility > VISIBLE).astype(np.uint8)
    contours = cv2.findContours(is_visible, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    return [
        tuple(contour[:, 0].T)
        for contour in sorted(contours, key=len, reverse=True)
        if len(contour) >= LEAST_OUTLINE_PX
    ]


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
