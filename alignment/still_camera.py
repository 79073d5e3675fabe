"""Find out whether the camera stands still, by comparing frames as they are.

Flow on blank walls is a guess that follows whatever moves nearby, so transforms that are fitted to it may move a
background that stands still. Pictures cannot be mistaken in this: if the camera stands still, what does not move looks
the same at the same pixels of distant frames."""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

import media
from alignment.long_range import LONG_EDGE_PX, clear_border, find_textured_pixels
from alignment.tracks import Flags, Floats, LayerPixels
from alignment.transforms import resize_matrix
from media.clip import evenly_spaced_indices
from media.images import fit_size
from unwrap_utils import Video

COMPARED_FRAMES = 9  # Each is compared with the next one of them, and with the one after half of the clip.
NOISE_SIGMA_PX, LIGHT_SIGMA_PX = 1.0, 8.0  # Finer details are noise, coarser ones light.
SAME_GREYS = 2  # Largest difference in grey levels of pixels that look the same.
CLEAR_GREYS = 4  # Pixels that differ by more, with and without the transforms, belong to something that moves.
# Least share of the pixels that a camera leaves the same if it stands still. It was .39 to .89 for five clips from a
# tripod, and at most .29 for nine clips from a hand.
LEAST_SAME = 0.35
# Differences on texture without the transforms, against those with them, up to which the transforms explain little. It
# is .59 to 1.08 for clips from a tripod, 1.5 or more for those from a hand that leave enough pixels the same.
MOST_UNEXPLAINED = 1.2


def is_camera_still(video: Video, mask: LayerPixels, transforms: Floats) -> bool:
    """Return whether frames show the background at the same pixels, as well as they do where transforms say.

    video: on the CPU. mask (T, H, W): the pixels of the background. transforms (T, 3, 3): fitted to its flow.
    """
    _, height, width = video.size
    size = fit_size((width, height), LONG_EDGE_PX)
    to_small, to_full = resize_matrix((width, height), size), resize_matrix(size, (width, height))
    frames = evenly_spaced_indices(len(transforms), COMPARED_FRAMES)
    half = max(1, len(frames) // 2)
    same, errors = [], np.zeros(2)  # errors: sums without and with the transforms
    for first, second in {*pairwise(frames), *zip(frames, frames[half:], strict=False)}:
        pictures = [media.resize(video.frames[t].numpy(), *size) for t in (first, second)]
        masks = [clear_border(media.resize(mask[t].astype(np.uint8), *size)) > 0 for t in (first, second)]
        details, other = (find_details(picture) for picture in pictures)
        to_first = to_small @ np.linalg.inv(transforms[first]) @ transforms[second] @ to_full
        moved: NDArray = cv2.warpPerspective(other, to_first, size, borderValue=np.nan)
        is_compared = masks[0] & masks[1] & np.isfinite(moved)
        if not is_compared.any():
            continue
        differences = np.abs(details - other)[is_compared], np.abs(details - moved)[is_compared]
        same.append(float((differences[0] < SAME_GREYS).mean()))
        is_clear = find_textured_pixels(pictures[0])[is_compared] & (np.minimum(*differences) < CLEAR_GREYS)
        errors += [each[is_clear].clip(max=5 * CLEAR_GREYS).sum() for each in differences]
    return bool(same) and float(np.mean(same)) >= LEAST_SAME and errors[0] <= MOST_UNEXPLAINED * errors[1]


def find_details(picture: NDArray[np.uint8]) -> Floats:
    """Return the grey levels of a picture (H, W, 3) without noise and without slow changes of light, (H, W)."""
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), NOISE_SIGMA_PX)
    details: Floats = grey - cv2.GaussianBlur(grey, (0, 0), LIGHT_SIGMA_PX)
    return details


def are_still(transforms: Floats) -> bool:
    """Return whether transforms (T, 3, 3) are those of a camera that stands still: the identity, exactly."""
    same: Flags = transforms == np.eye(3)
    return bool(same.all())
