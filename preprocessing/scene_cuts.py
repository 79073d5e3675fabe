"""Find where motion cannot be followed in a clip: cuts between scenes, and frames of a single colour."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.dis_flow import DisFlow
from alignment.feature_matches import match_features
from media import Pixels
from unwrap_utils import consistent_pixels, warp_by_flow

Floats = NDArray[np.floating]

VIEW_EDGE_PX = 384  # Pixels of the longer side of the views of frames in which features are matched.
LONG_EDGE_PX = 160  # Pixels of the longer side of the thumbnails that are compared.
MIN_THUMBNAIL_PX = 16  # Pixels that each side of a thumbnail has at least; DIS flow needs room for one patch.
# Share of pixels with consistent flow below which two frames may be a cut. It was below 0.14 across 99 % of 288 cuts
# between nine clips; in their fastest, blurred motion it was at least 0.21.
MIN_CONSISTENT = 0.2
# Difference of two frames after the motion is undone, in contrasts of the first frame, above which there is a cut. It
# was above 0.68 across 99 % of these cuts, and at most 0.53 in the fastest motion. Four of the cuts are missed.
MAX_DIFFERENCE = 0.6
# Two frames are of one scene if at least LEAST_MATCHES features match and move by at least LEAST_MOTION_PX. Across 288
# cuts between nine clips there were no matches; cuts between two views of one place were not measured. Logos and
# subtitles stay on the screen across a cut, and a ticker moves in a narrow strip, so these do not count: the matches
# must spread over LEAST_SPREAD of the width and of the height.
LEAST_MATCHES, LEAST_MOTION_PX, LEAST_SPREAD = 10, 4.0, 1 / 8
EMPTY_CONTRAST = 4.0  # Standard deviation of the grey levels below which a frame counts as empty.
CONTRAST_OFFSET = 4.0  # Grey levels added to the contrast of a frame, so that noise in dark frames is no cut.


@dataclass(frozen=True)
class Shrunk:
    """A frame (H, W, 3) at two small sizes."""

    thumbnail: Pixels  # whose longer side has LONG_EDGE_PX pixels
    view: Pixels  # whose longer side has VIEW_EDGE_PX pixels


@dataclass
class SceneCutDetector:
    """Find scene cuts and empty frames while frames are added; `cuts` and `empty` are up to date at any time."""

    cuts: list[int] = field(default_factory=list)  # number of the first frame after each cut
    empty: list[int] = field(default_factory=list)  # numbers of the frames of a single colour
    count: int = 0  # number of frames added so far
    previous: Shrunk | None = None  # the last frame that is not empty

    def __post_init__(self) -> None:
        """Create the flow method, which all frames share. One search does: lost areas are no cut."""
        self.dis_flow = DisFlow(searches_twice=False)

    def add_frame(self, frame: Pixels) -> None:
        """Add the next frame (H, W, 3)."""
        shrunk = Shrunk(resize_longer_side(frame, LONG_EDGE_PX), resize_longer_side(frame, VIEW_EDGE_PX))
        if shrunk.thumbnail.std((0, 1)).max() < EMPTY_CONTRAST:
            self.empty.append(self.count)
        else:
            if self.previous is not None and self.is_cut(self.previous, shrunk):
                self.cuts.append(self.count)
            self.previous = shrunk
        self.count += 1

    def is_cut(self, before: Shrunk, after: Shrunk) -> bool:
        """Return whether there is a cut between two frames.

        There is one if little of the flow between them is consistent, if it does not explain their difference, and if
        few features of one are found in the other.
        """
        thumbnails = before.thumbnail, after.thumbnail
        flow, back_flow = self.dis_flow(*thumbnails)
        if consistent_pixels(flow, back_flow).mean() >= MIN_CONSISTENT:
            return False
        if unexplained_difference(*thumbnails, flow) <= MAX_DIFFERENCE:
            return False
        return not have_moved_features(before.view, after.view)


def detect_cuts(frames: Iterable[Pixels]) -> SceneCutDetector:
    """Return a detector to which all frames (H, W, 3) of a clip were added."""
    detector = SceneCutDetector()
    for frame in frames:
        detector.add_frame(frame)
    return detector


def resize_longer_side(frame: Pixels, long_edge_px: int) -> Pixels:
    """Return a frame (H, W, 3) resized by averaging so that its longer side has `long_edge_px` pixels."""
    scale = long_edge_px / max(frame.shape[:2])
    height, width = (max(MIN_THUMBNAIL_PX, round(side * scale)) for side in frame.shape[:2])
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def have_moved_features(before: Pixels, after: Pixels) -> bool:
    """Return whether enough features of one picture (H, W, 3) are at another place in the other of the same size."""
    greys = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (before, after)]
    everywhere = np.ones(greys[0].shape, bool)
    matches = match_features(greys[0], greys[1], everywhere, everywhere)
    moved = matches.source[np.linalg.norm(matches.target - matches.source, axis=1) >= LEAST_MOTION_PX]
    if len(moved) < LEAST_MATCHES:
        return False
    width, height = np.quantile(moved, 0.9, axis=0) - np.quantile(moved, 0.1, axis=0)
    return bool(height >= LEAST_SPREAD * before.shape[0] and width >= LEAST_SPREAD * before.shape[1])


def unexplained_difference(before: Pixels, after: Pixels, flow: Floats) -> float:
    """Return the mean difference of two frames after the motion is undone, divided by the contrast of the first.

    flow: (H, W, 2) pixels from the first frame to the second.
    """
    warped = warp_by_flow(after, flow)
    contrast = np.abs(before - before.mean((0, 1))).mean()
    return float(np.abs(before.astype(np.float32) - warped).mean() / (contrast + CONTRAST_OFFSET))
