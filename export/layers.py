"""Layers as image sequences: foreground, mattes, clean plates, and the mappings as ST maps."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import media
from editing.atlas_file import AtlasFile, LayerImage
from editing.layer_edit import LayerEdit
from export.shadows import Flags, find_shadow, remove_thin_parts
from export.st_maps import map_positions, st_layers, write_inverse_maps, write_st_map
from grids.matting import continue_colors
from media import Pixels, to_8_bit
from media.contact_sheet import contact_sheet
from media.depth import make_linear
from media.film import write_exr
from rendering.atlas_view import compute_atlas_uv
from rendering.frames import VISIBLE, Floats, Frame, map_frames
from rendering.halo import coverage_in_front, in_halo
from rendering.hidden_light import continue_light
from rendering.trained_run import TrainedRun

SHADOW_FRAMES = 0.2  # Share of the frames with a shadow from which on the user is told.
# Opacity up to which the colour of the foreground is continued from more opaque pixels, and from which on it is that
# of the matting equation; distance in pixels over which colours are continued first.
CONTINUED_OPACITY, SOLVED_OPACITY, COLOR_SCALE_PX = 0.2, 0.8, 4.0
LEAST_OPACITY = 0.05  # Least opacity by which the colour of the foreground is divided.
# Width, as a share of the long edge, of the border of what no frame shows: there the atlas has colours of the object.
UNSEEN_BORDER = 1 / 100
INPAINT_RADIUS_PX = 5  # Radius of the neighbourhood from which the plate is inpainted, in pixels.
LAYERS_CONVENTION = (
    "linear light; the foreground is premultiplied: foreground + (1 - foreground.A) * background is close to the "
    "frame, and equal to it where foreground.A is 1; shadows that were removed are missing; "
    "ST maps: red s, green t, from the lower left corner, blue visibility, not multiplied by an opacity"
)
SHEET_PX = 480  # Width of a picture in layers.png, in pixels.
SHEET_GREY = 160  # Grey value behind transparent pictures in layers.png, 0 to 255.


@dataclass
class CleanPlate:
    """A frame without its objects, H x W pixels."""

    picture: Floats  # (H, W, 3) in [0, 1]
    background: Floats  # (H, W, 3) in [0, 1]: what is behind the objects, in their shadow if they cast one
    never_visible: NDArray[np.bool_]  # (H, W) inpainted: what no frame shows, and a border around it
    has_shadow: bool  # whether a shadow moves with the objects


@dataclass
class FrameNotes:
    """What is reported about a frame after its pictures are written."""

    previews: dict[str, Pixels]  # small pictures for layers.png by their kind; empty except for the middle frame
    hidden_share: float = 0.0  # share of the pixels whose background is visible in no frame
    has_shadow: bool = False  # whether a shadow moves with the objects


@dataclass
class Separated:
    """A frame taken apart into its layers, H x W pixels."""

    mattes: dict[str, Floats]  # (H, W) by name; empty if they are not asked for
    source: NDArray | None = None  # (H, W, 3) the frame at its own depth
    shown: Floats | None = None  # (H, W, 3) the same as a screen shows it, in [0, 1]
    clean: CleanPlate | None = None  # None if neither plates nor the foreground are asked for


def export_layers(
    run: TrainedRun,
    atlas_folder: Path,
    atlas: AtlasFile | None,
    folder: Path,
    kinds: Sequence[str],
    remove_shadow: bool = False,
    file_format: str = "png",
) -> None:
    """Write image sequences of the layers, named after the frames and of their native size, and layers.png.

    kinds: what to write, see KINDS in export_layers.py; each kind gets a folder of its name. atlas and atlas_folder:
    the exported atlases to which the ST maps refer and from which the plates are rendered; None if only mattes are
    written. remove_shadow: take shadows that move with the objects out of the plates, too. file_format: "png", or "exr"
    for one file for each frame, with all kinds as its layers.
    """
    background = run.model.layers.background.index
    images = {image.layer: image for image in atlas.layers} if atlas else {}
    plate = open_plate(run, images[background], atlas_folder) if background in images else None
    middle, native = len(run.clip) // 2, run.clip.native_size

    def write_frame(frame: Frame) -> FrameNotes:
        """Write all pictures of a frame, and return what is reported about it."""
        name = run.clip.frame_paths[frame.t].stem
        separated = separate_frame(run, frame, plate, kinds, remove_shadow)
        needs_pictures = file_format == "png" or frame.t == middle
        pictures = make_pictures(frame, separated, kinds) if needs_pictures else {}
        maps = map_positions(run, frame, images) if {"st_maps", "inverse_st_maps"} & set(kinds) else []
        if file_format == "exr":
            layers = make_linear_layers(frame, separated, kinds) | (st_layers(maps) if "st_maps" in kinds else {})
            write_exr(media.make_folder(folder / "layers") / f"{name}.exr", layers, {"comments": LAYERS_CONVENTION})
        else:
            write_pictures(folder, name, pictures)
            if "st_maps" in kinds:
                for each in maps:
                    path = media.make_folder(folder / f"st_{each.layer}") / f"{name}.exr"
                    write_st_map(path, each.texels, each.size, each.visibility)
        if "inverse_st_maps" in kinds:
            write_inverse_maps(folder, name, maps, native)
        small = {kind: show_on_grey(picture) for kind, picture in pictures.items()} if frame.t == middle else {}
        if separated.clean is None:
            return FrameNotes(small)
        return FrameNotes(small, float(separated.clean.never_visible.mean()), separated.clean.has_shadow)

    frames = map_frames(write_frame, run.model, run.clip, run.full_range, with_colors=False, output_size=native)
    with closing(frames):
        notes = list(tqdm(frames, total=len(run.clip), desc="layers", unit="frame"))
    previews = notes[middle].previews
    if previews:
        media.write_png(folder / "layers.png", contact_sheet(previews))
    if "background" in kinds:
        print_plate_notes(notes, remove_shadow)


def print_plate_notes(notes: Sequence[FrameNotes], remove_shadow: bool) -> None:
    """Print how much of the plates was inpainted, and whether a shadow moves with the object."""
    percentage = 100 * np.mean([note.hidden_share for note in notes])
    if percentage:
        print(
            f"{percentage:.1f} % of the background's pixels are inpainted, because no frame shows them or what is "
            "beside them: background_unseen"
        )
    else:
        print(
            "what is behind the objects is seen in other frames everywhere; nothing had to be inpainted. "
            "Parts of an object that its masks miss stay in the plate"
        )
    with_shadow = sum(note.has_shadow for note in notes)
    if with_shadow >= SHADOW_FRAMES * len(notes):
        takes = "it was taken" if remove_shadow else "--remove_shadow takes it"
        remedy = f"{takes} out of the plates where it has the background's colours"
        print(f"a shadow or a dark reflection moves with the object in {with_shadow} of {len(notes)} frames; {remedy}")


def separate_frame(
    run: TrainedRun, frame: Frame, plate: LayerEdit | None, kinds: Sequence[str], remove_shadow: bool
) -> Separated:
    """Take a frame apart into what the kinds need."""
    separated = Separated(make_mattes(run, frame) if "alpha" in kinds else {})
    if {"foreground", "background"} & set(kinds):
        separated.source = run.clip.native_frame(frame.t)
        separated.shown = media.to_display(separated.source)
        separated.clean = make_clean_plate(run, frame, separated.shown, plate, remove_shadow)
    return separated


def make_pictures(frame: Frame, separated: Separated, kinds: Sequence[str]) -> dict[str, NDArray]:
    """Return the pictures of a frame by the name of their folder. Colours have the bits of the frame, 8 or 16."""
    pictures: dict[str, NDArray] = {name: to_8_bit(matte) for name, matte in separated.mattes.items()}
    clean = separated.clean
    if clean is not None and separated.source is not None and separated.shown is not None:
        dtype = np.uint8 if separated.source.dtype == np.uint8 else np.uint16
        color = foreground_color(separated.shown, clean.background, frame.coverage)
        pictures["background"] = media.from_display(clean.picture, dtype)
        pictures["background_unseen"] = np.where(clean.never_visible, 255, 0).astype(np.uint8)
        pictures["foreground"] = media.from_display(np.dstack((color, frame.coverage)), dtype)
    return {kind: picture for kind, picture in pictures.items() if kind.split("_")[0] in kinds}


def write_pictures(folder: Path, name: str, pictures: dict[str, NDArray]) -> None:
    """Write the pictures of a frame, each into the folder of its kind."""
    for kind, picture in pictures.items():
        write = media.write_mask if kind.startswith("alpha") else media.write_png
        write(media.make_folder(folder / kind) / f"{name}.png", picture)


def make_linear_layers(frame: Frame, separated: Separated, kinds: Sequence[str]) -> dict[str, NDArray]:
    """Return the layers of a frame as channels of an EXR file, in linear light, by names such as foreground.R.

    The foreground is premultiplied. Laid over the background behind it, it gives the frame, R, G and B, where it is
    opaque, and nearly so at its outline, where no colour makes up for a background that is brighter than the frame.
    """
    layers: dict[str, NDArray] = {f"{name}.A": matte.astype(np.float16) for name, matte in separated.mattes.items()}
    clean = separated.clean
    if clean is None or separated.source is None:
        return layers
    source = make_linear(separated.source)
    number = np.float32 if separated.source.dtype == np.float32 else np.float16
    plate, behind = (
        np.where((picture == separated.shown).all(-1, keepdims=True), source, media.from_display(picture, np.float32))
        for picture in (clean.picture, clean.background)
    )
    alpha = frame.coverage[..., None]
    foreground = np.dstack((np.maximum(source - (1 - alpha) * behind, 0) * (alpha > 0), alpha))
    pictures = {"": source, "background.": plate, "foreground.": foreground}
    for prefix, picture in pictures.items():
        if prefix.strip(".") in ("", *kinds):
            layers |= {
                f"{prefix}{name}": picture[..., i].astype(number)
                for i, name in zip(range(picture.shape[2]), "RGBA", strict=False)
            }
    if "background" in kinds:
        layers["background_unseen.A"] = clean.never_visible.astype(np.float16)
    return layers


def make_mattes(run: TrainedRun, frame: Frame) -> dict[str, Floats]:
    """Return the opacity (H, W) of all objects together, and, if there are several, the visibility of each."""
    mattes = {"alpha": frame.coverage}
    foregrounds = run.model.layers.foregrounds
    if len(foregrounds) > 1:
        mattes |= {f"alpha_{layer.name}": frame.visibility[layer.index] for layer in foregrounds}
    return mattes


def open_plate(run: TrainedRun, image: LayerImage, folder: Path) -> LayerEdit:
    """Read an exported atlas as an edit of its layer, from which the layer can be rendered in every frame."""
    rgba = media.read_edit(folder / image.image)
    if image.padding_px:  # only visible texels count, without the padding around them
        side = 2 * image.padding_px + 1
        opacity = cv2.erode(rgba[..., 3], cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
        rgba = np.where(opacity[..., None] > 0.5, rgba, 0).astype(np.float32)
    return LayerEdit(image.layer, torch.from_numpy(rgba), image.view(run.model, (image.width, image.height), None))


def make_clean_plate(
    run: TrainedRun, frame: Frame, source: Floats, plate: LayerEdit | None, remove_shadow: bool
) -> CleanPlate:
    """Return the frame without its objects.

    source (H, W, 3): the frame. Where objects hide the background, its atlas is rendered with the light around them.
    Pixels whose background is visible in no frame, and a border around them, are inpainted (Telea 2004). Without a
    plate, the frame is returned unchanged. remove_shadow: the atlas with the light around the shadow replaces the
    shadow, too.
    """
    if plate is None:
        return CleanPlate(source, source, np.zeros(source.shape[:2], bool), False)
    is_covered = in_halo(coverage_in_front(frame.alpha, plate.layer), max(source.shape[:2]))
    rgba = plate.sample(compute_atlas_uv(run.model, frame)[plate.layer])
    atlas_color, is_known = rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-3), rgba[..., 3] >= VISIBLE
    is_known &= ~find_unseen_border(is_covered & ~is_known, round(UNSEEN_BORDER * max(source.shape[:2])))
    lit_color = atlas_color
    if frame.light is not None:
        lit_color = (atlas_color * continue_light(frame.light, is_covered, max(source.shape[:2]))).clip(0, 1)
    is_shadow, ambient = find_shadow(source, atlas_color, is_covered | ~is_known)
    background = replace_pixels(source, lit_color, is_covered, is_known)
    if remove_shadow and is_shadow.any():
        unshaded = (atlas_color * ambient[..., None]).clip(0, 1)
        picture = replace_pixels(source, unshaded, is_covered | is_shadow, is_known)
    else:
        picture = background
    return CleanPlate(picture, background, is_covered & ~is_known, bool(is_shadow.any()))


def find_unseen_border(is_unseen: Flags, width_px: int) -> Flags:
    """Return the pixels (H, W) within a width of the parts that no frame shows. Thinner parts have no border."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width_px + 1,) * 2)
    wide = remove_thin_parts(is_unseen, width_px).astype(np.uint8)
    return np.asarray(cv2.dilate(wide, kernel) > 0)


def replace_pixels(source: Floats, color: Floats, is_replaced: Flags, is_known: Flags) -> Floats:
    """Replace pixels of a frame (H, W, 3) by `color` where that is known, and by inpainting elsewhere."""
    replaced = is_replaced.astype(np.float32)
    weight = np.maximum(cv2.GaussianBlur(replaced, (0, 0), 1.0), replaced)[..., None]
    picture = source * (1 - weight) + color * weight
    holes = is_replaced & ~is_known
    if holes.any():
        inpainted = cv2.inpaint(to_8_bit(picture), holes.astype(np.uint8), INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
        picture = np.where(holes[..., None], inpainted.astype(np.float32) / 255, picture)
    return picture


def foreground_color(source: Floats, background: Floats, alpha: Floats) -> Floats:
    """Return the colour of the objects alone, (H, W, 3) in [0, 1], without the background's at their outline.

    It follows from the matting equation. Where the opacity alpha (H, W) is so small that the equation says little, the
    colours of more opaque pixels are continued.
    """
    solved = (source - (1 - alpha[..., None]) * background) / np.maximum(alpha, LEAST_OPACITY)[..., None]
    solved = solved.clip(0, 1).astype(np.float32)
    continued = continue_colors(solved, alpha**4, COLOR_SCALE_PX)
    trust = np.clip((alpha - CONTINUED_OPACITY) / (SOLVED_OPACITY - CONTINUED_OPACITY), 0, 1)[..., None]
    return continued + trust * (solved - continued)


def show_on_grey(picture: Pixels) -> Pixels:
    """Shrink a picture for layers.png; a transparent one is composited over grey."""
    height = max(1, round(SHEET_PX * picture.shape[0] / picture.shape[1]))
    small = media.resize(picture, min(SHEET_PX, picture.shape[1]), min(height, picture.shape[0]))
    if small.ndim == 2 or small.shape[2] == 3:
        return small
    alpha = small[..., 3:] / 255
    return np.rint(small[..., :3] * alpha + SHEET_GREY * (1 - alpha)).astype(np.uint8)
