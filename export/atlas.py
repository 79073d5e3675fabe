"""Atlases to paint on: cropped to what is used, as fine as the video, sampled from the frames themselves."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import media
from command_line import UserError, warn
from editing.atlas_file import AtlasFile, LayerImage, checkpoint_fingerprint, write_atlas_file
from export.openraster import write_openraster
from grids.unwrap import fill_unknown
from media import Pixels, to_8_bit
from media.clip import evenly_spaced
from media.contact_sheet import contact_rows
from rendering.atlas_view import AtlasView, atlas_uv, mark_visible_texels, render_atlas
from rendering.blending import LUMA
from rendering.frame_store import FrameStore, open_frame_store
from rendering.frames import VISIBLE, Floats, Frame
from rendering.inverse import invert_uv_field, sample_bilinear
from rendering.resizing import Box, resize_frame
from rendering.trained_run import TrainedRun

LARGEST_SIDE_PX = 8192
FINEST_SHARE = 0.05  # of the pixels may be finer in the video than in the atlas image
SAMPLED_FRAMES = 24
STACK_BYTES = 1_500_000_000  # of samples held at once; fewer frames are sampled for larger atlases
MARGIN_PX = 4  # around what is used
AGREEING = 10 / 255  # luminance by which samples may differ from their median to count
OUTLINED_FRAMES = 3
GRID_PX = 100
GUIDE_COLOR, GRID_COLOR = (255, 40, 160, 160), (120, 120, 120, 60)


@dataclass
class LayerAtlas:
    """One layer's pictures, (h, w, 3) in [0, 1]."""

    image: LayerImage
    seen: Floats  # (h, w) largest share with which any frame shows the texel
    learned: Floats
    sampled: Floats
    guide: Pixels  # (h, w, 4)

    @cached_property
    def is_sampled_sharper(self) -> bool:
        return sharpness(self.sampled, self.seen) > sharpness(self.learned, self.seen)


def export_atlases(run: TrainedRun, folder: Path, resolution: int | None, padding_px: int, bits: int) -> AtlasFile:
    """Write all atlases, their guides, .ora files and atlas.json into `folder`.

    resolution: longer side of each image in pixels; None: as fine as the video. padding_px: how far colour is continued
    beyond what is seen. bits: 8 or 16.
    """
    images, sheet = [], {}
    with open_frame_store(run, folder) as store:
        for layer in run.model.layers:
            name = layer.name
            described = plan_layer_image(run, store, layer.index, f"{name}.png", resolution, padding_px)
            if described is None:
                warn(f"the {name} shows in no frame; it is left out")
                continue
            atlas = make_layer_atlas(run, store, described)
            write_layer(folder, name, atlas, padding_px, bits)
            images.append(described)
            kind = "sampled from the frames" if atlas.is_sampled_sharper else "learned"
            print(f"{name}: {described.width} x {described.height}, {kind} (the sharper of the two)")
            sheet[f"{name}, learned"] = show_on_white(atlas.learned, atlas.seen)
            sheet[f"{name}, sampled"] = show_on_white(atlas.sampled, atlas.seen)
    if not images:
        raise UserError(f"{run.checkpoint.parent}: no layer shows in any frame, nothing to export; train again")
    atlas_file = AtlasFile(run.name, checkpoint_fingerprint(run.checkpoint), images)
    write_atlas_file(folder, atlas_file)
    media.write_png(folder / "atlases.png", contact_rows(sheet, 2, height=480))
    return atlas_file


def plan_layer_image(
    run: TrainedRun, store: FrameStore, layer: int, name: str, resolution: int | None, padding_px: int
) -> LayerImage | None:
    """The part of a layer's square that frames use, and at which resolution; None if none shows the layer."""
    low, high, steps = np.full(2, np.inf), np.full(2, -np.inf), []
    measured = evenly_spaced(store.count, SAMPLED_FRAMES)
    for frame in store.frames():
        uv, shown = frame.uv[layer], frame.visibility[layer] > VISIBLE
        if not shown.any():
            continue
        low, high = np.minimum(low, uv[shown].min(0)), np.maximum(high, uv[shown].max(0))
        if frame.t in measured:
            steps.append(finest_steps(uv)[shown])
    if not steps:
        return None
    native = run.clip.native_size[0] / run.clip.width
    extent = (high - low).clip(1e-6, None)
    if resolution is None:
        step = float(np.quantile(np.concatenate(steps), FINEST_SHARE)) / native
        if extent.max() / step > LARGEST_SIDE_PX:
            step = float(extent.max()) / LARGEST_SIDE_PX
            warn(f"{name}: limited to {LARGEST_SIDE_PX} px, the video is finer in places")
    else:
        step = float(extent.max()) / max(resolution - 1 - 2 * MARGIN_PX, 1)
    width, height = (np.ceil(extent / step).astype(int) + 1 + 2 * MARGIN_PX).tolist()
    u, v = (low - MARGIN_PX * step).tolist()
    return LayerImage(name, layer, width, height, u, v, step, padding_px)


def finest_steps(uv: Floats) -> Floats:
    """(H, W): distance in uv of neighbouring pixels, along the direction in which the mapping changes least."""
    slopes = np.stack([np.gradient(uv, axis=1), np.gradient(uv, axis=0)], axis=-1)
    gram = np.einsum("yxij,yxik->yxjk", slopes, slopes)
    half, product = (gram[..., 0, 0] + gram[..., 1, 1]) / 2, np.linalg.det(gram)
    return np.sqrt(np.maximum(half - np.sqrt(np.maximum(half**2 - product, 0)), 1e-18))


def make_layer_atlas(run: TrainedRun, store: FrameStore, image: LayerImage) -> LayerAtlas:
    """All pictures of one layer."""
    size = (image.width, image.height)
    view = image.view(run.model, size, None)
    seen = torch.zeros(image.height, image.width)
    for frame in store.frames():
        places, shares = atlas_uv(run.model, frame), torch.from_numpy(frame.visibility)
        mark_visible_texels(seen, view, places[image.layer], shares[image.layer])
    seen = seen.numpy()
    learned = render_atlas(run.model, view, size)
    sampled, known = sample_atlas(run, store, image, view)
    sampled = np.where(known[..., None], sampled, learned)
    return LayerAtlas(image, seen, learned, sampled, draw_guide(run, store, image, view))


def sample_atlas(
    run: TrainedRun, store: FrameStore, image: LayerImage, view: AtlasView
) -> tuple[Floats, NDArray[np.bool_]]:
    """(h, w, 3): the frames themselves, unwrapped, and where any was found.

    Each texel takes the mean of the samples that agree with their weighted median, those from the sharpest views
    weighing most. Light is taken off.
    """
    height, width = image.height, image.width
    most = max(5, int(STACK_BYTES / (height * width * 5)))
    frames = evenly_spaced(store.count, min(most, SAMPLED_FRAMES))
    colors = np.zeros((len(frames), height, width, 3), np.uint8)
    weights = np.zeros((len(frames), height, width), np.float16)
    for number, t in enumerate(tqdm(frames, desc=f"sampling the {Path(image.image).stem}", unit="frame")):
        frame = resize_frame(store.frame(t), *run.clip.native_size)
        if (box := visible_box(run, frame, image, view)) is not None:
            colors[number][box], weights[number][box] = warp_frame_to_atlas(run, frame, image, view, box)
    sampled = np.zeros((height, width, 3), np.float32)
    rows = max(1, int(4e7 / (len(frames) * width)))
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        sampled[part] = agreeing_mean(colors[:, part], weights[:, part].astype(np.float32))
    return sampled, (weights > 0).any(0)


def visible_box(run: TrainedRun, frame: Frame, image: LayerImage, view: AtlasView) -> Box | None:
    """Rows and columns of an atlas image that a frame shows; None if it does not show the layer."""
    shown = frame.visibility[image.layer] > VISIBLE
    if not shown.any():
        return None
    size = (image.width, image.height)
    texels = view.to_pixels(atlas_uv(run.model, frame)[image.layer], size).numpy()[shown]
    low, high = np.floor(texels.min(0)).astype(int), np.ceil(texels.max(0)).astype(int) + 1
    columns, rows = (slice(max(0, low[i]), max(1, min(size[i], high[i]))) for i in (0, 1))
    return rows, columns


def warp_frame_to_atlas(
    run: TrainedRun, frame: Frame, image: LayerImage, view: AtlasView, box: Box
) -> tuple[Pixels, NDArray[np.float16]]:
    """One frame's colours (h, w, 3) on a part of an atlas image, and how much they count (h, w)."""
    layer, (rows, columns) = image.layer, box
    texels = view.to_pixels(atlas_uv(run.model, frame)[layer], (image.width, image.height)).numpy()
    texels = texels - np.float32([columns.start, rows.start])
    positions, found = invert_uv_field(texels, (columns.stop - columns.start, rows.stop - rows.start))
    picture = run.clip.native_frame(frame.t).astype(np.float32) / 255
    if frame.light is not None:
        picture = picture / np.maximum(frame.light, 0.1)
    color = cv2.remap(picture, positions, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    share = sample_bilinear(frame.visibility[layer], positions)
    sharp = 1 / np.maximum(finest_steps(frame.uv[layer]) / image.uv_per_pixel, 1.0)  # a coarse view counts less
    weight = np.where(
        found & (share > VISIBLE), share**4 * sample_bilinear(sharp.astype(np.float32), positions) ** 4, 0
    )
    return to_8_bit(color), weight.astype(np.float16)


def agreeing_mean(colors: Pixels, weights: Floats) -> Floats:
    """(h, w, 3): mean of samples (K, h, w, 3) whose luminance is close to the weighted median's; weights (K, h, w)."""
    luma = (colors.astype(np.float32) / 255) @ LUMA
    order = luma.argsort(axis=0)
    sums = np.take_along_axis(weights, order, 0).cumsum(axis=0)
    middle = (sums < 0.5 * sums[-1]).sum(axis=0).clip(0, len(colors) - 1)
    median = np.take_along_axis(np.take_along_axis(luma, order, 0), middle[None], 0)
    agrees = weights * (np.abs(luma - median) <= AGREEING)
    total = np.einsum("khw,khwc->hwc", agrees, colors.astype(np.float32) / 255)
    return total / np.maximum(agrees.sum(0), 1e-6)[..., None]


def sharpness(picture: Floats, seen: Floats) -> float:
    """Mean step of the luminance between neighbouring texels that are seen."""
    luma, shown = picture @ LUMA, seen > VISIBLE
    inner = cv2.erode(shown.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if not inner.any():
        return 0.0
    steps = np.hypot(np.gradient(luma, axis=0), np.gradient(luma, axis=1))
    return float(steps[inner].mean())


def draw_guide(run: TrainedRun, store: FrameStore, image: LayerImage, view: AtlasView) -> Pixels:
    """(h, w, 4): a faint grid, and the outlines of some frames."""
    guide = np.zeros((image.height, image.width, 4), np.uint8)
    for position in range(GRID_PX, max(image.width, image.height), GRID_PX):
        guide[:, position : position + 1] = GRID_COLOR
        guide[position : position + 1] = GRID_COLOR
    for t in evenly_spaced(store.count, OUTLINED_FRAMES):
        texels = view.to_pixels(atlas_uv(run.model, store.frame(t))[image.layer], (image.width, image.height)).numpy()
        border = np.concatenate([texels[0], texels[1:, -1], texels[-1, -2::-1], texels[-2:0:-1, 0]])
        outline = np.rint(border).clip(-30000, 30000).astype(np.int32)
        cv2.polylines(guide, [outline[:, None]], True, GUIDE_COLOR, 1)
        corner = tuple(int(value) for value in outline[0] + [6, 18])
        cv2.putText(guide, f"frame {t}", corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, GUIDE_COLOR, 1)
    return guide


def write_layer(folder: Path, name: str, atlas: LayerAtlas, padding_px: int, bits: int) -> None:
    """Write a layer's pictures, and the .ora file that holds them as layers with an empty one to paint on."""
    alpha = pad_opacity(atlas.seen, padding_px)
    kinds = {
        kind: np.dstack((extend_colors(picture, atlas.seen), alpha))
        for kind, picture in (("learned", atlas.learned), ("sampled", atlas.sampled))
    }
    for kind, picture in kinds.items():
        media.write_png(folder / f"{name}_{kind}.png", to_8_bit(picture))
    rgba = kinds["sampled" if atlas.is_sampled_sharper else "learned"]
    media.write_png(folder / f"{name}.png", to_8_bit(rgba)) if bits == 8 else write_png_16(folder / f"{name}.png", rgba)
    media.write_png(folder / f"{name}_guide.png", atlas.guide)
    layers = {
        "paint here": np.zeros_like(atlas.guide),
        "guide": atlas.guide,
        "atlas": to_8_bit(rgba),
    }
    write_openraster(folder / f"{name}.ora", layers)


def pad_opacity(seen: Floats, padding_px: int) -> Floats:
    """1 where a texel is seen, 0 elsewhere; grown by some pixels."""
    shown = (seen > VISIBLE).astype(np.float32)
    if padding_px:
        side = 2 * padding_px + 1
        shown = cv2.dilate(shown, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return shown


def extend_colors(picture: Floats, seen: Floats) -> Floats:
    """The picture with colours continued over what is not seen: tools that resample find no black there."""
    values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    known = torch.from_numpy((seen > VISIBLE).astype(np.float32))[None, None]
    return fill_unknown(values, known)[0].permute(1, 2, 0).numpy()


def write_png_16(path: Path, rgba: Floats) -> None:
    """Write RGBA (h, w, 4) in [0, 1] with 16 bits."""
    values = np.clip(np.rint(rgba * 65535), 0, 65535).astype(np.uint16)
    with media.write_atomically(path) as temporary:
        if not cv2.imwrite(str(temporary), values[..., [2, 1, 0, 3]]):
            raise UserError(f"{path}: could not be written; check the folder")


def show_on_white(picture: Floats, seen: Floats) -> Pixels:
    """A picture where it is seen, white elsewhere."""
    shown = (seen > VISIBLE)[..., None]
    return to_8_bit(np.where(shown, picture, 1.0))
