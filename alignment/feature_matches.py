"""Spots that two images show (SIFT features, Lowe 2004): found by how they look, however far they moved."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.feature import match_descriptors

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

MAX_FEATURES = 1000  # Most features of one area; those with the strongest response are kept.
CONTEXT_PX = 24  # Pixels around an area that are looked at, too, because features of its rim reach beyond it.
# A match counts only if the next best feature is clearly less alike (Lowe 2004, section 7.1).
MAX_DISTANCE_RATIO = 0.8
# At least LEAST_SUPPORTERS of the NEIGHBOURS nearest matches must have nearly the same motion. The allowed difference
# is ALIKE_PX plus ALIKE_SHARE of their distance, because the motion changes from place to place where an object turns
# or grows. Matches that are farther away than SUPPORT_PX say nothing.
NEIGHBOURS, LEAST_SUPPORTERS = 6, 2
ALIKE_PX, ALIKE_SHARE, SUPPORT_PX = 2.0, 0.25, 64.0


@dataclass(frozen=True)
class Matches:
    """N spots that two images show: their positions (x, y) in the source and in the target, (N, 2) each, pixels."""

    source: Floats
    target: Floats

    def __len__(self) -> int:
        """Return N."""
        return len(self.source)

    def swap(self) -> "Matches":
        """Return the matches from the target to the source."""
        return Matches(self.target, self.source)

    def choose(self, chosen: NDArray) -> "Matches":
        """Return some of the matches. chosen: flags (N,), or the positions of these matches."""
        return Matches(self.source[chosen], self.target[chosen])


NO_MATCHES = Matches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))


def match_features(source: NDArray, target: NDArray, source_area: Flags, target_area: Flags) -> Matches:
    """Return the spots in an area of one image that are found in an area of the other.

    source, target: grey images (H, W). source_area, target_area: (H, W), where features may lie. Two features match if
    each looks most like the other one, and no third one looks nearly as much like it. Matches are kept if other matches
    around them have nearly the same motion.
    """
    (places, descriptors), (target_places, target_descriptors) = (
        find_features(image, area) for image, area in ((source, source_area), (target, target_area))
    )
    if min(len(places), len(target_places)) < 2:
        return NO_MATCHES
    source_index, target_index = match_descriptors(
        descriptors, target_descriptors, cross_check=True, max_ratio=MAX_DISTANCE_RATIO
    ).T
    matches = Matches(places[source_index], target_places[target_index])
    # A spot with several directions is several features, which must not support each other.
    _, first = np.unique(np.rint(matches.source), axis=0, return_index=True)
    matches = matches.choose(first)
    return matches.choose(is_supported(matches))


def find_features(image: NDArray, area: Flags) -> tuple[Floats, Floats]:
    """Return the positions (N, 2) of the features in an area (H, W) of a grey image, and what they look like (N, 128).

    Descriptions are roots of SIFT's, of length 1 (RootSIFT, Arandjelovic and Zisserman 2012).
    """
    if not area.any():
        return NO_MATCHES.source, np.zeros((0, 128), np.float32)
    left, top, width, height = cv2.boundingRect(area.astype(np.uint8))
    left, top, right, bottom = left - CONTEXT_PX, top - CONTEXT_PX, left + width + CONTEXT_PX, top + height + CONTEXT_PX
    left, top = max(left, 0), max(top, 0)
    part, mask = (np.ascontiguousarray(values[top:bottom, left:right]) for values in (image, area.astype(np.uint8)))
    # OpenCV's own limit would count the features outside the area, too.
    features, descriptors = cv2.SIFT.create().detectAndCompute(part, mask)
    if not features:
        return NO_MATCHES.source, np.zeros((0, 128), np.float32)
    strongest = np.argsort([-feature.response for feature in features], kind="stable")[:MAX_FEATURES]
    places = np.array([features[index].pt for index in strongest], np.float32) + np.array([left, top], np.float32)
    roots = np.sqrt(descriptors[strongest])
    return places, roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), np.float32(1e-6))


def is_supported(matches: Matches) -> Flags:
    """Return which matches, (N,), have enough others around them with nearly the same motion."""
    if len(matches) <= LEAST_SUPPORTERS:
        return np.zeros(len(matches), bool)
    motions = matches.target - matches.source
    distances = np.linalg.norm(matches.source[:, None] - matches.source, axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, : min(NEIGHBOURS, len(matches) - 1)]
    differences = np.linalg.norm(motions[nearest] - motions[:, None], axis=-1)
    near = np.take_along_axis(distances, nearest, axis=1)
    supports = (differences < ALIKE_PX + ALIKE_SHARE * near) & (near < SUPPORT_PX)
    return supports.sum(axis=1) >= LEAST_SUPPORTERS
