"""Find where motion cannot be followed in a clip: cuts between scenes, and frames of a single colour."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.dis_flow import DisFlow
from media import Pixels
from unwrap_utils import consistent_pixels, warp_by_flow

Floats = NDArray[np.floating]

LONG_EDGE_PX = 160  # Pixels of the longer side of the thumbnails that are compared.
MIN_THUMBNAIL_PX = 16  # Pixels that each side of a thumbnail has at least; DIS flow needs room for one patch.
# Share of pixels with consistent flow below which two frames may be a cut. It was below 0.14 across 99 % of 288 cuts
# between nine clips; in their fastest, blurred motion it was at least 0.21.
MIN_CONSISTENT = 0.2
# Difference of two frames after the motion is undone, in contrasts of the first frame, above which there is a cut. It
# was above 0.68 across 99 % of these cuts, and at most 0.53 in the fastest motion. Four of the cuts are missed.
MAX_DIFFERENCE = 0.6
EMPTY_CONTRAST = 4.0  # Standard deviation of the grey levels below which a frame counts as empty.
CONTRAST_OFFSET = 4.0  # Grey levels added to the contrast of a frame, so that noise in dark frames is no cut.


@dataclass
class SceneCutDetector:
    """Find scene cuts and empty frames while frames are added; `cuts` and `empty` are up to date at any time."""

    cuts: list[int] = field(default_factory=list)  # number of the first frame after each cut
    empty: list[int] = field(default_factory=list)  # numbers of the frames of a single colour
    count: int = 0  # number of frames added so far
    previous: Pixels | None = None  # thumbnail of the last frame that is not empty

    def __post_init__(self) -> None:
        """Create the flow method, which all frames share. One search does: lost areas are no cut."""
        self.dis_flow = DisFlow(searches_twice=False)

    def add_frame(self, frame: Pixels) -> None:
        """Add the next frame (H, W, 3)."""
        thumbnail = make_thumbnail(frame)
        if thumbnail.std((0, 1)).max() < EMPTY_CONTRAST:
            self.empty.append(self.count)
        else:
            if self.previous is not None and self.is_cut(self.previous, thumbnail):
                self.cuts.append(self.count)
            self.previous = thumbnail
        self.count += 1

    def is_cut(self, before: Pixels, after: Pixels) -> bool:
        """Return whether there is a cut between two thumbnails (H, W, 3).

        There is one if little of the flow between them is consistent, and if it does not explain their difference.
        """
        flow, back_flow = self.dis_flow(before, after)
        if consistent_pixels(flow, back_flow).mean() >= MIN_CONSISTENT:
            return False
        return unexplained_difference(before, after, flow) > MAX_DIFFERENCE


def detect_cuts(frames: Iterable[Pixels]) -> SceneCutDetector:
    """Return a detector to which all frames (H, W, 3) of a clip were added."""
    detector = SceneCutDetector()
    for frame in frames:
        detector.add_frame(frame)
    return detector


def make_thumbnail(frame: Pixels) -> Pixels:
    """Return a frame resized by averaging so that its longer side has LONG_EDGE_PX pixels."""
    scale = LONG_EDGE_PX / max(frame.shape[:2])
    height, width = (max(MIN_THUMBNAIL_PX, round(side * scale)) for side in frame.shape[:2])
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def unexplained_difference(before: Pixels, after: Pixels, flow: Floats) -> float:
    """Return the mean difference of two frames after the motion is undone, divided by the contrast of the first.

    flow: (H, W, 2) pixels from the first frame to the second.
    """
    warped = warp_by_flow(after, flow)
    contrast = np.abs(before - before.mean((0, 1))).mean()
    return float(np.abs(before.astype(np.float32) - warped).mean() / (contrast + CONTRAST_OFFSET))
