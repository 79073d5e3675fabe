"""A picture and a report of the masks of a clip."""

from pathlib import Path

import cv2
import numpy as np

import media
from evaluation.mask_metrics import iou
from masks.provenance import mask_note_path, write_mask_note
from media.clip import evenly_spaced
from media.contact_sheet import contact_rows

SHEET_FRAMES, SHEET_COLUMNS = 6, 3  # of the picture that shows the masks
OUTLINE = (255, 40, 160)


def report_masks(frames: list[Path], folder: Path, asked: dict[str, str], found: list[Path]) -> None:
    """Write NAME_maskrcnn.png, some frames with the masks' outlines, and the note NAME_maskrcnn.json.

    found: the folders in which a method found every mask. Where true masks are, the note says how good these are.
    """
    masks = {path.stem: path for path in media.list_images(folder)}
    pictures = {}
    for t in evenly_spaced(len(frames), SHEET_FRAMES):
        image = media.read_rgb(frames[t])
        mask = media.resize(media.read_mask(masks[frames[t].stem]), *image.shape[1::-1])
        outlines, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        thickness = max(1, round(max(image.shape) / 320))
        pictures[frames[t].name] = cv2.drawContours(image.copy(), outlines, -1, OUTLINE, thickness)
    sheet = folder.with_name(f"{folder.name}.png")
    media.write_png(sheet, contact_rows(pictures, SHEET_COLUMNS))
    print(f"look at {sheet}: the outlines should follow the object")
    truth = frames[0].parent.with_name(f"{frames[0].parent.name}_gt")
    quality = measure_masks(frames, masks, truth) if truth.is_dir() else {}
    if quality:
        worst = min(quality, key=quality.get)
        mean = sum(quality.values()) / len(quality)
        print(
            f"J against {truth}: mean {mean:.3f}, worst {quality[worst]:.3f} in {worst}; all: {mask_note_path(folder)}"
        )
        quality = {"mean_j": round(mean, 4), "j": quality}
    write_mask_note(folder, asked, found, quality)


def measure_masks(frames: list[Path], masks: dict[str, Path], truth: Path) -> dict[str, float]:
    """J (IoU with the true mask) of each frame whose truth is known; masks by the frames' stems."""
    by_name = {path.stem: path for path in media.list_images(truth)}
    values = {}
    for path in frames:
        if path.stem in by_name:
            expected = media.read_mask(by_name[path.stem]) > 127
            found = media.resize_labels(media.read_mask(masks[path.stem]), *expected.shape[::-1]) > 127
            values[path.name] = round(iou(found, expected), 4)
    return values
