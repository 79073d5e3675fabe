"""Strokes: what somebody painted on a few frames to say what is the object and what is not.

A stroke is grown to the region that it means (GrabCut, Rother et al. 2004), and the region is carried to other frames
along the flow. Strokes themselves are never contradicted."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import media
from command_line import UserError
from masks.cues import SmallClip, shrink, shrink_video
from media.clip import Clip
from media.flows import BACKWARD, FORWARD, STEPS
from unwrap_utils import Video

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int8]

BACKGROUND_COLOR = (0, 0, 0)
# Colour of the strokes of each object by its name: red, green and blue from 0 to 255. Black strokes say background.
NAMED_COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
}
COLOR_NAMES, OBJECT_COLORS = tuple(NAMED_COLORS), tuple(NAMED_COLORS.values())

LEAST_OPACITY = 128  # Opacity of a stroke's pixel, 0 to 255, from which on it counts; brushes have soft borders.
COLOR_TOLERANCE = 64  # Largest difference per channel, 0 to 255, from the colour that is meant.
MAX_UNKNOWN = 0.1  # Share of the painted pixels that may have other colours, as where two strokes touch.
MAX_GROWTH = 1 / 64  # Largest distance, as a share of the long edge, to which a stroke grows.
GRABCUT_ROUNDS = 4
CARRY_DECAY = 0.97  # Factor per frame of the weight of a region that is carried along the flow.
LEAST_CARRIED = 0.3  # Weight from which on a carried region decides.


def read_strokes(folder: Path, clip: Clip) -> dict[int, NDArray[np.uint8]]:
    """Read the strokes of a folder: for each painted frame 0 (nothing), 1, 2, ... (object) or 255 (background), (H, W).

    A picture is named like its frame, or has the frame's number as its name. Transparent pixels say nothing. Raises
    UserError if the folder, a frame, a size or a colour is wrong, or if nothing is painted.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --strokes takes a folder with a PNG for every painted frame")
    paths = media.list_images(folder)
    strokes = {find_frame(path, clip): read_stroke_labels(path, clip) for path in paths}
    if not any(labels.any() for labels in strokes.values()):
        raise UserError(
            f"{folder}: nothing is painted there; paint red (object 1) or black (background) on a transparent PNG "
            f"named like its frame, for example {clip.frame_paths[0].stem}.png"
        )
    return strokes


def draw_strokes(strokes: Iterable[dict[str, Any]], clip: Clip, folder: Path) -> Path:
    """Write strokes that are given by points as PNGs that `read_strokes` reads, and return their folder.

    strokes: each has "frame", "object" (1, 2, ...; 0 for background), "points" (x, y) and "size", the width of the
    stroke, both in pixels of working size. Raises UserError for values that cannot be used.
    """
    pictures: dict[int, NDArray[np.uint8]] = {}
    for number, stroke in enumerate(strokes, 1):
        try:
            t, label = int(stroke["frame"]), int(stroke["object"])
            points = np.array([point[:2] for point in stroke["points"]], float).reshape(-1, 2)
            width = max(1, round(float(stroke["size"])))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"mask stroke {number}: needs frame, object, points and size") from None
        if not 0 <= t < len(clip) or not 0 <= label <= clip.objects or not len(points):
            raise UserError(
                f"mask stroke {number}: frame {t}, object {label}; expected frames 0 to {len(clip) - 1}, objects 1 to "
                f"{clip.objects} (0 is background), and at least one point"
            )
        picture = pictures.setdefault(t, np.zeros((clip.height, clip.width, 4), np.uint8))
        color = (*(OBJECT_COLORS[label - 1] if label else BACKGROUND_COLOR), 255)
        line = np.rint(np.repeat(points, 2, axis=0) if len(points) == 1 else points).astype(np.int32)
        cv2.polylines(picture, [line[:, None]], False, color, width)
    media.make_folder(folder)
    for t, picture in pictures.items():
        media.write_png(folder / f"{clip.frame_paths[t].stem}.png", picture)
    return folder


def find_frame(path: Path, clip: Clip) -> int:
    """Return the number of the frame that a picture of strokes belongs to. Raises UserError if there is none."""
    stems = [frame.stem for frame in clip.frame_paths]
    if path.stem in stems:
        return stems.index(path.stem)
    if path.stem.isdecimal() and int(path.stem) < len(clip):
        return int(path.stem)
    raise UserError(
        f"{path}: belongs to no frame; name it like its frame, {stems[0]}.png to {stems[-1]}.png, "
        f"or by its number, 0 to {len(clip) - 1}"
    )


def read_stroke_labels(path: Path, clip: Clip) -> NDArray[np.uint8]:
    """Read the strokes of one frame at the clip's working size, see `read_strokes`. Raises UserError."""
    image = media.open_image(path)
    if image.size not in (clip.native_size, (clip.width, clip.height)):
        native = " x ".join(map(str, clip.native_size))
        raise UserError(f"{path}: is {image.width} x {image.height}, the frames are {native}; paint at that size")
    rgba = np.asarray(image.convert("RGBA"))
    is_painted = rgba[..., 3] >= LEAST_OPACITY
    if is_painted.all():
        raise UserError(f"{path}: is opaque everywhere; strokes need a transparent background (PNG with opacity)")
    labels = np.zeros(is_painted.shape, np.uint8)
    for label, color in [(255, BACKGROUND_COLOR), *enumerate(OBJECT_COLORS[: clip.objects], 1)]:
        difference = np.abs(rgba[..., :3].astype(np.int16) - np.array(color)).max(-1)
        labels[is_painted & (difference <= COLOR_TOLERANCE)] = label
    is_unknown = is_painted & (labels == 0)
    if is_unknown.sum() > MAX_UNKNOWN * is_painted.sum():
        y, x = np.argwhere(is_unknown)[0]
        names = ", ".join(f"{color} for object {number}" for number, color in enumerate(OBJECT_COLORS, 1))
        raise UserError(
            f"{path}: colour {tuple(map(int, rgba[y, x, :3]))} at {x},{y} is not known for {clip.objects} object(s); "
            f"paint {BACKGROUND_COLOR} for background, {names.split(', (')[0] if clip.objects == 1 else names}"
        )
    return media.resize_labels(labels, clip.width, clip.height)


def object_strokes(labels: NDArray[np.uint8], number: int) -> Labels:
    """Return what strokes (H, W) say of one object: 1 it is the object, -1 it is not, 0 nothing."""
    return np.where(labels == number, 1, np.where(labels > 0, -1, 0)).astype(np.int8)


def select_strokes(strokes: dict[int, NDArray[np.uint8]], number: int) -> dict[int, Labels]:
    """Return what the strokes of each painted frame say of one object, see `object_strokes`."""
    return {t: object_strokes(labels, number) for t, labels in strokes.items()}


def grow_strokes(rgb: NDArray[np.uint8], inside: Flags, strokes: Labels) -> Labels:
    """Grow the strokes on a frame to the regions that they mean, (h, w): 1 object, -1 not the object, 0 unchanged.

    rgb (h, w, 3): the frame. inside (h, w): the object as it is known. strokes (h, w): 1, -1 or 0. GrabCut cuts the
    frame anew along its edges, near the strokes. Of the parts that change, only those that hold a stroke of their kind
    are taken.
    """
    distance = cv2.distanceTransform((strokes == 0).astype(np.uint8), cv2.DIST_L2, 5)
    is_open = distance <= MAX_GROWTH * max(strokes.shape)
    labels = np.where(inside, cv2.GC_FGD, cv2.GC_BGD).astype(np.uint8)
    labels[is_open] = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD)[is_open]
    labels[strokes > 0], labels[strokes < 0] = cv2.GC_FGD, cv2.GC_BGD
    grown = strokes.copy()
    if not (np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).any() and np.isin(labels, (cv2.GC_BGD, cv2.GC_PR_BGD)).any()):
        return grown
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # GrabCut begins with random clusters of colours.
    cv2.grabCut(rgb[..., ::-1].copy(), labels, (0, 0, 1, 1), *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    is_object = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    for sign, changed in ((1, is_object & ~inside), (-1, ~is_object & inside)):
        _, parts = cv2.connectedComponents(changed.astype(np.uint8))
        touched = np.unique(parts[changed & (strokes == sign)])
        grown[np.isin(parts, touched) & changed & (grown == 0)] = sign
    return grown


def carry_along_flow(clip: SmallClip, regions: dict[int, Labels]) -> Floats:
    """Carry the regions of some frames to all frames along valid flow: (T, h, w) from -1 to 1.

    The sign says whether a pixel is the object, the size how much that is worth. regions: labels (h, w) by frame.
    """
    frames, height, width = clip.rgb.shape[:3]
    result = np.zeros((frames, height, width), np.float32)
    for t, labels in regions.items():
        result[t] = labels
    for direction, order in ((BACKWARD, range(1, frames)), (FORWARD, range(frames - 2, -1, -1))):
        carried = np.zeros((frames, height, width), np.float32)
        for t in order:
            neighbour = t + STEPS[direction]
            source = regions[neighbour].astype(np.float32) if neighbour in regions else carried[neighbour]
            valid = CARRY_DECAY * (clip.flow_valid[direction, t] > 0.5)
            carried[t] = valid * clip.warp_from_neighbour(source, direction, t)
        for t in set(range(frames)) - set(regions):
            result[t] = np.where(np.abs(carried[t]) > np.abs(result[t]), carried[t], result[t])
    return result


def apply_strokes(
    clip: SmallClip, rgb: NDArray[np.uint8], probability: NDArray[np.uint8], strokes: dict[int, Labels]
) -> NDArray[np.uint8]:
    """Return the probability (T, H, W), 255 for certain, of an object after strokes have corrected it.

    clip: the reduced video. rgb (T, H, W, 3): the frames. strokes: labels (H, W) by frame, see `object_strokes`. Frames
    that no stroke reaches stay as they are.
    """
    if not strokes:
        return probability
    size = clip.rgb.shape[2:0:-1]
    grown = {t: grow_strokes(rgb[t], probability[t] > 127, labels) for t, labels in strokes.items()}
    regions = {t: np.rint(shrink(labels.astype(np.float32), size)).astype(np.int8) for t, labels in grown.items()}
    carried = carry_along_flow(clip, regions)
    corrected = probability.copy()
    for t, frame in enumerate(corrected):
        says = grown[t] if t in grown else cv2.resize(carried[t], frame.shape[::-1])
        frame[says > LEAST_CARRIED] = 255
        frame[says < -LEAST_CARRIED] = 0
    return corrected


def correct_masks(video: Video) -> Tensor:
    """Return the masks (F, T, H, W) of a video, corrected by its strokes, on the video's device."""
    if not video.strokes:
        return video.masks
    cpu_video = video.to(torch.device("cpu"))
    clip, rgb = shrink_video(cpu_video), cpu_video.frames.numpy()
    corrected = [
        apply_strokes(clip, rgb, masks, select_strokes(video.strokes, number))
        for number, masks in enumerate(cpu_video.masks.numpy(), 1)
    ]
    return torch.from_numpy(np.stack(corrected)).to(video.device)
