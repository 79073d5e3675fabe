"""Spots that two images show (SIFT features, Lowe 2004): found by how they look, however far they moved."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

MAX_FEATURES = 1000  # Most features of one image; those with the most contrast are kept.
CONTEXT_PX = 24  # Pixels around an area that are looked at, too, because features of its rim reach beyond it.
# A match counts only if the next best feature is clearly less alike (Lowe 2004, section 7.1).
MAX_DISTANCE_RATIO = 0.8
# Of the NEIGHBOURS nearest matches, so many must move alike: within so many pixels, and so much of their distance
# more, because the motion changes from place to place where an object turns or grows.
NEIGHBOURS, LEAST_SUPPORTERS = 6, 2
ALIKE_PX, ALIKE_SHARE = 2.0, 0.25


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

    def choose(self, chosen: Flags) -> "Matches":
        """Return some of the matches. chosen: (N,)."""
        return Matches(self.source[chosen], self.target[chosen])


NO_MATCHES = Matches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))


def match_features(source: NDArray, target: NDArray, source_area: Flags, target_area: Flags) -> Matches:
    """Return spots in an area of one image that are in an area of the other.

    source, target: grey images (H, W). source_area, target_area: (H, W), where features may lie. Matches are kept if
    each of the two is the most alike of all for the other, clearly so, and if matches around them move alike.
    """
    (places, descriptors), (target_places, target_descriptors) = (
        find_features(image, area) for image, area in ((source, source_area), (target, target_area))
    )
    if min(len(places), len(target_places)) < 2:
        return NO_MATCHES
    likeness = descriptors @ target_descriptors.T
    best, next_best = np.argsort(-likeness, axis=1)[:, :2].T
    rows = np.arange(len(places))
    distance, next_distance = (np.sqrt(np.maximum(2 - 2 * likeness[rows, other], 0)) for other in (best, next_best))
    is_mutual = likeness.argmax(axis=0)[best] == rows
    chosen = is_mutual & (distance < MAX_DISTANCE_RATIO * next_distance)
    matches = Matches(places[chosen], target_places[best[chosen]])
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
    features, descriptors = cv2.SIFT.create(nfeatures=MAX_FEATURES).detectAndCompute(part, mask)
    if not features:
        return NO_MATCHES.source, np.zeros((0, 128), np.float32)
    places = np.array([feature.pt for feature in features], np.float32) + np.array([left, top], np.float32)
    roots = np.sqrt(descriptors)
    return places, roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), np.float32(1e-6))


def is_supported(matches: Matches) -> Flags:
    """Return (N,) which matches have enough others around them that move alike."""
    if len(matches) <= LEAST_SUPPORTERS:
        return np.zeros(len(matches), bool)
    motions = matches.target - matches.source
    distances = np.linalg.norm(matches.source[:, None] - matches.source, axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, : min(NEIGHBOURS, len(matches) - 1)]
    differences = np.linalg.norm(motions[nearest] - motions[:, None], axis=-1)
    tolerances = ALIKE_PX + ALIKE_SHARE * np.take_along_axis(distances, nearest, axis=1)
    return (differences < tolerances).sum(axis=1) >= LEAST_SUPPORTERS
