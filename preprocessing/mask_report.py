"""Report the masks of a clip: a picture to look at, a warning where masks jump, and a note with request and quality."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import media
from alignment.dis_flow import DisFlow
from command_line import warn
from evaluation.mask_metrics import iou
from masks.provenance import mask_note_path, write_mask_note
from masks.strokes import COLOR_NAMES, OBJECT_COLORS
from media import Pixels
from media.clip import evenly_spaced_indices
from media.contact_sheet import contact_rows, contact_sheet, stack_rows
from media.images import fit_size
from parallel.side_by_side import map_side_by_side, stream_side_by_side
from unwrap_utils import Floats, warp_by_flow

SHEET_FRAMES = 6  # Number of frames that the picture shows.
MOST_JUMPS = 3  # Number of frames after which the mask jumps that it shows, too.
JUMP_LONG_EDGE_PX = 240  # Pixels of the long edge at which the masks of neighbouring frames are compared.
# Masks of neighbouring frames jump if they overlap by less, once one of them is moved along the flow. True masks of
# nine clips overlap by at least .74 in every frame.
LEAST_OVERLAP = 0.7
# Smaller masks do not count, in pixels at that size: an outline that is off by one pixel would already be a jump, and
# so would an object that comes into the frame.
LEAST_MASK_PX = 150
SHEET_COLUMNS = 3  # Number of frames in one row of the picture.
CANDIDATE_FRAMES, CANDIDATE_HEIGHT_PX = 4, 240  # Frames of each candidate on their picture, and their height.
OUTLINE_RGB = (255, 40, 160)  # Colour of the masks' outlines, 0 to 255.


def report_masks(
    frames: list[Path], folder: Path, options: dict[str, str], found_folders: list[Path], method: str
) -> None:
    """Write a picture NAME_maskrcnn.png of some masks, and a note NAME_maskrcnn.json about all.

    options: how the masks were requested. found_folders: the folders in which every mask was found by a method.
    method: the one that was used.
    If the clip has true masks (NAME_gt), the note also holds the IoU of each frame.
    """
    masks = {path.stem: path for path in media.list_images(folder)}
    folders = list_single_objects(folder)
    sheet, jumps = folder.with_name(f"{folder.name}.png"), find_jumps(frames, folders)
    media.write_png(sheet, draw_outlines(frames, folders, jumps))
    if jumps:
        least, t = min((least, t) for t, least in jumps.items())
        warn(
            f"the mask jumps in {len(jumps)} of {len(frames) - 1} pairs of neighbouring frames, most after "
            f"{frames[t].name}: it overlaps with the next mask, moved along the flow, by {100 * least:.0f} %; the last "
            f"rows of {sheet} show it"
        )
    print(
        f"look at {sheet}: the outlines should follow the object; if not, give --masks or --point X,Y,FRAME, or "
        "correct the finished run with --strokes"
    )
    if len(folders) > 1:
        colors = ", ".join(f"object {number} is {name}" for number, name in enumerate(COLOR_NAMES[: len(folders)], 1))
        print(f"in its outlines, {colors}; object 1 should be the one in front")
    truth = frames[0].parent.with_name(f"{frames[0].parent.name}_gt")
    ious = measure_masks(frames, masks, truth) if truth.is_dir() else {}
    quality: dict[str, Any] = {"used": method}
    if jumps:
        quality["jumps"] = {frames[t].name: round(overlap, 4) for t, overlap in jumps.items()}
    if ious:
        worst = min(ious, key=lambda name: ious[name])
        mean = sum(ious.values()) / len(ious)
        print(f"J against {truth}: mean {mean:.3f}, worst {ious[worst]:.3f} in {worst}; all: {mask_note_path(folder)}")
        quality |= {"mean_j": round(mean, 4), "j": ious}
    write_mask_note(folder, options, found_folders, quality)


def list_single_objects(folder: Path) -> list[Path]:
    """Return the folders of the masks of single objects (`NAME_maskrcnn_1`, ...) if there are several.

    Otherwise return the folder of all masks.
    """
    folders = sorted(folder.parent.glob(f"{folder.name}_[0-9]"))
    return folders if len(folders) > 1 else [folder]


def find_jumps(frames: list[Path], folders: list[Path]) -> dict[int, float]:
    """Return the numbers of the frames after which a mask jumps, with its overlap with the next one, 0 to 1.

    The overlap is the IoU with the other mask, moved along the flow, in the better of both directions. Pairs with an
    empty mask or a tiny one do not count: an object may come and go. folders: of the masks of each object, which are
    looked at alone, because one may leave the frame.
    """
    size = fit_size(media.image_size(frames[0]), JUMP_LONG_EDGE_PX)
    masks = [{path.stem: path for path in media.list_images(folder)} for folder in folders]
    local = threading.local()  # A DIS object may not be shared by threads.

    def read(path: Path) -> tuple[Pixels, list[NDArray[np.bool_]]]:
        inside = [media.resize(media.read_mask(each[path.stem]), *size) > 127 for each in masks]
        return media.resize(media.read_rgb(path), *size), inside

    def compare(t: int) -> float:
        """Return the least overlap of the masks of frame t and the next one; 1 if none counts."""
        if not hasattr(local, "dis"):
            local.dis = DisFlow(searches_twice=False)
        (picture, inside), (next_picture, next_inside) = small[t], small[t + 1]
        pairs = zip(inside, next_inside, strict=True)
        large = [(mask, other) for mask, other in pairs if min(mask.sum(), other.sum()) >= LEAST_MASK_PX]
        if not large:
            return 1.0
        flow, back_flow = local.dis(picture, next_picture)
        return min(
            max(iou(mask, move_mask(other, flow)), iou(other, move_mask(mask, back_flow))) for mask, other in large
        )

    reading = stream_side_by_side(read, frames)
    small = list(tqdm(reading, total=len(frames), desc="comparing masks", unit="frame", leave=False))
    overlaps = map_side_by_side(compare, range(len(frames) - 1))
    return {t: overlap for t, overlap in enumerate(overlaps) if overlap < LEAST_OVERLAP}


def move_mask(mask: NDArray[np.bool_], flow: Floats) -> NDArray[np.bool_]:
    """Return a mask (H, W) of another frame, moved to the frame from which the flow (H, W, 2) leads to it."""
    return np.asarray(warp_by_flow(mask.astype(np.float32), flow) > 0.5)


def draw_outlines(frames: list[Path], folders: list[Path], jumps: dict[int, float]) -> Pixels:
    """Return a picture (H, W, 3) of some frames with the outlines of their masks, and of those where masks jump most.

    folders: of the masks of each object, which have the colours of its strokes if there are several. jumps: see
    `find_jumps`.
    """
    colors = OBJECT_COLORS[: len(folders)] if len(folders) > 1 else (OUTLINE_RGB,)
    masks = [{path.stem: path for path in media.list_images(folder)} for folder in folders]

    def draw(t: int) -> Pixels:
        image = media.read_rgb(frames[t])
        height, width = image.shape[:2]
        for paths, color in zip(masks, colors, strict=True):
            draw_outline(image, media.resize(media.read_mask(paths[frames[t].stem]), width, height), color)
        return image

    pictures = {frames[t].name: draw(t) for t in evenly_spaced_indices(len(frames), SHEET_FRAMES)}
    sheet = contact_rows(pictures, SHEET_COLUMNS)
    if not jumps:
        return sheet
    worst = sorted(sorted(jumps, key=lambda t: jumps[t])[:MOST_JUMPS])
    pairs = {
        f"{frames[s].name}: the mask jumps" if s == t else frames[s].name: draw(s) for t in worst for s in (t, t + 1)
    }
    return stack_rows([sheet, contact_rows(pairs, 2)])


def draw_outline(image: Pixels, mask: Pixels, color: Sequence[int] = OUTLINE_RGB) -> Pixels:
    """Draw the outline of a mask (H, W) into an image (H, W, 3), and return the image."""
    outlines, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, color, thickness=max(1, round(max(image.shape) / 320)))
    return image


def write_candidates(frames: list[Path], candidates: dict[str, Pixels]) -> Path:
    """Write a picture of some frames with the outlines of each candidate's masks, one row each. Return its path.

    candidates: masks (T, h, w) of a reduced size, by a few words about them.
    """
    times = evenly_spaced_indices(len(frames), CANDIDATE_FRAMES)
    native_width, native_height = media.image_size(frames[0])
    size = max(1, round(native_width * CANDIDATE_HEIGHT_PX / native_height)), CANDIDATE_HEIGHT_PX
    images = {t: media.resize(media.read_rgb(frames[t]), *size) for t in times}
    rows = []
    for number, (name, masks) in enumerate(candidates.items(), 1):
        pictures: dict[str, Pixels] = {}
        for t, image in images.items():
            caption = f"candidate {number}: {name}" if not pictures else frames[t].name
            pictures[caption] = draw_outline(image.copy(), media.resize(masks[t], *size))
        rows.append(contact_sheet(pictures, CANDIDATE_HEIGHT_PX))
    path = frames[0].parent.with_name(f"{frames[0].parent.name}_maskrcnn_candidates.png")
    media.write_png(path, stack_rows(rows))
    return path


def measure_masks(frames: list[Path], masks: dict[str, Path], truth: Path) -> dict[str, float]:
    """Return the IoU (J of DAVIS) of each frame that has a true mask, by the frame's name.

    masks: by the stems of the frames. truth: folder of true masks.
    """
    true_masks = {path.stem: path for path in media.list_images(truth)}
    values = {}
    for path in frames:
        if path.stem in true_masks:
            expected = media.read_mask(true_masks[path.stem]) > 127
            height, width = expected.shape
            mask = media.resize_labels(media.read_mask(masks[path.stem]), width, height) > 127
            values[path.name] = round(iou(mask, expected), 4)
    return values
