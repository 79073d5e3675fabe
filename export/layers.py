"""Layers as image sequences: foreground, mattes, clean plates, and the mappings as ST maps."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import media
from editing.atlas_file import AtlasFile, LayerImage
from editing.layer_edit import LayerEdit
from export.st_maps import write_st_map
from media import Pixels, to_8_bit
from media.contact_sheet import contact_sheet
from rendering.atlas_view import atlas_uv
from rendering.frames import VISIBLE, Floats, Frame, render_frames
from rendering.inverse import invert_uv_field, sample_bilinear
from rendering.trained_run import TrainedRun

TOUCHED = 0.02  # coverage from which a pixel's own colour no longer is the background's alone
HALO_PX = 2  # around the object, whose blur opacity does not hold
SHEET_PX = 480
LEAST_OPACITY = 0.05  # below it a pixel says nothing about the object's colour
INPAINT_RADIUS_PX = 5


def export_layers(
    run: TrainedRun, atlas_folder: Path, atlas: AtlasFile | None, folder: Path, kinds: Sequence[str]
) -> None:
    """Write the chosen kinds as sequences named after the frames, at the frames' own size, into folders of their name.

    atlas_folder: what export_atlas wrote, whose pictures the ST maps refer to and the plates come from; mattes alone
    need none.
    """
    background = run.model.layers.background.index
    images = {image.layer: image for image in atlas.layers} if atlas else {}
    plate = open_plate(run, images[background], atlas_folder) if background in images else None
    shown: dict[str, Pixels] = {}
    unseen_share = []
    native = run.clip.native_size
    frames = render_frames(run.model, run.clip, run.full_range, with_colors=False, output_size=native)
    for frame in tqdm(frames, total=len(run.clip), desc="layers", unit="frame"):
        name = run.clip.frame_paths[frame.t].stem
        source = run.clip.native_frame(frame.t).astype(np.float32) / 255
        pictures = make_mattes(run, frame) if "alpha" in kinds else {}
        if {"foreground", "background"} & set(kinds):
            clean, unseen = make_clean_plate(run, frame, source, plate)
            unseen_share.append(float(unseen.mean()))
            pictures["background"] = to_8_bit(clean)
            pictures["background_unseen"] = np.where(unseen, 255, 0).astype(np.uint8)
            pictures["foreground"] = extract_foreground(frame, source, clean)
        pictures = {kind: each for kind, each in pictures.items() if kind.split("_")[0] in kinds}
        for kind in pictures:
            media.write_png(media.make_folder(folder / kind) / f"{name}.png", pictures[kind])
        write_maps(run, frame, images, folder, name, kinds)
        if frame.t == len(run.clip) // 2:
            shown = {kind: show_on_grey(each) for kind, each in pictures.items()}
    if shown:
        media.write_png(folder / "layers.png", contact_sheet(shown))
    if "background" in kinds:
        print(f"{100 * np.mean(unseen_share):.1f} % of the plates were never seen and are inpainted: background_unseen")


def make_mattes(run: TrainedRun, frame: Frame) -> dict[str, Pixels]:
    """Opacity (H, W) of the foreground; of several objects also what the frame shows of each, by the layers' names."""
    pictures = {"alpha": to_8_bit(frame.coverage)}
    if len(run.model.layers.foregrounds) > 1:
        shares = zip(run.model.layers, frame.visibility, strict=True)
        pictures |= {f"alpha_{layer.name}": to_8_bit(share) for layer, share in list(shares)[:-1]}
    return pictures


def open_plate(run: TrainedRun, image: LayerImage, folder: Path) -> LayerEdit:
    """An exported atlas as something that can be seen by a frame."""
    import torch

    rgba = media.read_edit(folder / image.image)
    if image.padding_px:  # what is seen, without the colours that go on around it
        side = 2 * image.padding_px + 1
        seen = cv2.erode(rgba[..., 3], cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
        rgba = np.where(seen[..., None] > 0.5, rgba, 0).astype(np.float32)
    return LayerEdit(image.layer, torch.from_numpy(rgba), image.view(run.model, (image.width, image.height), None))


def make_clean_plate(
    run: TrainedRun, frame: Frame, source: Floats, plate: LayerEdit | None
) -> tuple[Floats, NDArray[np.bool_]]:
    """The frame (H, W, 3) without the object, and which of its pixels had to be made up (H, W).

    Where the object hides the background, the background's atlas shows it, lit as the frame is; where no frame ever
    saw it, it is inpainted (Telea 2004).
    """
    covered = cv2.dilate((frame.coverage > TOUCHED).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=HALO_PX)
    hidden = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), 1.0)
    hidden = np.maximum(hidden, covered)[..., None]
    if plate is None:
        return source, np.zeros(source.shape[:2], bool)
    shown = plate.sample(atlas_uv(run.model, frame)[plate.layer])
    behind = shown[..., :3] / np.maximum(shown[..., 3:], 1e-3)
    if frame.light is not None:
        behind = behind * frame.light
    clean = source * (1 - hidden) + behind.clip(0, 1) * hidden
    unseen = (shown[..., 3] < VISIBLE) & (covered > 0)
    if unseen.any():
        holes = unseen.astype(np.uint8)
        filled = cv2.inpaint(to_8_bit(clean), holes, INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
        clean = np.where(unseen[..., None], filled.astype(np.float32) / 255, clean)
    return clean, unseen


def extract_foreground(frame: Frame, source: Floats, behind: Floats) -> Pixels:
    """The object alone, (H, W, 4), straight opacity: over the plate it gives the frame again."""
    alpha = frame.coverage[..., None]
    color = (source - (1 - alpha) * behind) / np.maximum(alpha, LEAST_OPACITY)
    return to_8_bit(np.dstack((color.clip(0, 1), alpha)))


def write_maps(
    run: TrainedRun, frame: Frame, images: dict[int, LayerImage], folder: Path, name: str, kinds: Sequence[str]
) -> None:
    """The mapping of each layer to its atlas image, and back, as ST maps."""
    if not {"st_maps", "inverse_st_maps"} & set(kinds):
        return
    places = atlas_uv(run.model, frame)
    height, width = frame.alpha.shape[1:]
    for layer, image in images.items():
        size, share = (image.width, image.height), frame.visibility[layer]
        texels = image.view(run.model, size, None).to_pixels(places[layer], size).numpy()
        layer_name = run.model.layers[layer].name
        if "st_maps" in kinds:
            write_st_map(media.make_folder(folder / f"st_{layer_name}") / f"{name}.exr", texels, size, share)
        if "inverse_st_maps" in kinds:
            positions, found = invert_uv_field(texels, size)
            seen = np.where(found, sample_bilinear(share, positions), 0).astype(np.float32)
            target = media.make_folder(folder / f"st_{layer_name}_inverse")
            write_st_map(target / f"{name}.exr", positions, (width, height), seen)


def show_on_grey(picture: Pixels) -> Pixels:
    """A picture for the overview: small, opacity over grey."""
    height = max(1, round(SHEET_PX * picture.shape[0] / picture.shape[1]))
    small = media.resize(picture, min(SHEET_PX, picture.shape[1]), min(height, picture.shape[0]))
    if small.ndim == 2 or small.shape[2] == 3:
        return small
    alpha = small[..., 3:] / 255
    return np.rint(small[..., :3] * alpha + 160 * (1 - alpha)).astype(np.uint8)
