"""Report the masks of a clip: a picture to look at, and a note with the request and the quality."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

import media
from evaluation.mask_metrics import iou
from masks.provenance import mask_note_path, write_mask_note
from media import Pixels
from media.clip import evenly_spaced_indices
from media.contact_sheet import contact_rows, contact_sheet, stack_rows

SHEET_FRAMES = 6  # Number of frames that the picture shows.
SHEET_COLUMNS = 3  # Number of frames in one row of the picture.
CANDIDATE_FRAMES, CANDIDATE_HEIGHT_PX = 4, 180  # Frames of each candidate on their picture, and their height.
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
    sheet = folder.with_name(f"{folder.name}.png")
    media.write_png(sheet, draw_outlines(frames, masks))
    print(
        f"look at {sheet}: the outlines should follow the object; if not, give --masks or --point X,Y,FRAME, or "
        "correct the finished run with --strokes"
    )
    truth = frames[0].parent.with_name(f"{frames[0].parent.name}_gt")
    ious = measure_masks(frames, masks, truth) if truth.is_dir() else {}
    quality: dict[str, Any] = {"used": method}
    if ious:
        worst = min(ious, key=lambda name: ious[name])
        mean = sum(ious.values()) / len(ious)
        print(f"J against {truth}: mean {mean:.3f}, worst {ious[worst]:.3f} in {worst}; all: {mask_note_path(folder)}")
        quality |= {"mean_j": round(mean, 4), "j": ious}
    write_mask_note(folder, options, found_folders, quality)


def draw_outlines(frames: list[Path], masks: dict[str, Path]) -> Pixels:
    """Return a picture (H, W, 3) of some frames with the outlines of their masks. masks: by the stems of the frames."""
    pictures = {}
    for t in evenly_spaced_indices(len(frames), SHEET_FRAMES):
        image = media.read_rgb(frames[t])
        height, width = image.shape[:2]
        mask = media.resize(media.read_mask(masks[frames[t].stem]), width, height)
        pictures[frames[t].name] = draw_outline(image, mask)
    return contact_rows(pictures, SHEET_COLUMNS)


def draw_outline(image: Pixels, mask: Pixels) -> Pixels:
    """Draw the outline of a mask (H, W) into an image (H, W, 3), and return the image."""
    outlines, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, OUTLINE_RGB, thickness=max(1, round(max(image.shape) / 320)))
    return image


def write_candidates(frames: list[Path], candidates: dict[str, Pixels]) -> Path:
    """Write a picture of some frames with the outlines of each candidate's masks, one row each. Return its path.

    candidates: masks (T, h, w) of a reduced size, by a few words about them.
    """
    rows = []
    for number, (name, masks) in enumerate(candidates.items(), 1):
        pictures: dict[str, Pixels] = {}
        for t in evenly_spaced_indices(len(frames), CANDIDATE_FRAMES):
            caption = f"candidate {number}: {name}" if not pictures else frames[t].name
            image = media.read_rgb(frames[t])
            width = max(1, round(image.shape[1] * CANDIDATE_HEIGHT_PX / image.shape[0]))
            image, mask = (media.resize(picture, width, CANDIDATE_HEIGHT_PX) for picture in (image, masks[t]))
            pictures[caption] = draw_outline(image, mask)
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
