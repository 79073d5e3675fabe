"""Where a clip cannot be followed: cuts between scenes, and frames that show nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from media import Pixels
from unwrap_utils import consistent_flow, warp_by_flow

LONG_EDGE_PX = 160  # a cut shows in a thumbnail
FOLLOWED = 0.2  # share of pixels whose flow returns; across a cut it is below 0.05, in fast motion above 0.5
UNEXPLAINED = 0.6  # difference left after the motion, in contrasts of the frame; 0.8 and more across a cut
EMPTY_CONTRAST = 4.0  # standard deviation of the grey levels of a frame that shows nothing
FLAT = 4.0  # grey levels added to a frame's contrast, so that dark frames count no less


@dataclass
class SceneCutDetector:
    """Looks at frames as they come; `cuts` and `empty` are known at any time."""

    cuts: list[int] = field(default_factory=list)  # first frame after each cut
    empty: list[int] = field(default_factory=list)  # frames of a single colour
    count: int = 0
    before: Pixels | None = None  # thumbnail of the last frame that shows something

    def __post_init__(self) -> None:
        self.search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def add_frame(self, frame: Pixels) -> None:
        """The next frame (H, W, 3)."""
        small = thumbnail(frame)
        if small.std((0, 1)).max() < EMPTY_CONTRAST:
            self.empty.append(self.count)
        else:
            if self.before is not None and self.is_cut(self.before, small):
                self.cuts.append(self.count)
            self.before = small
        self.count += 1

    def is_cut(self, before: Pixels, after: Pixels) -> bool:
        """Whether hardly anything can be followed from one thumbnail to the next, and what can does not explain it."""
        grey = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (before, after)]
        flow, back = self.search.calc(*grey, None), self.search.calc(*grey[::-1], None)
        if consistent_flow(flow, back).mean() >= FOLLOWED:
            return False
        return unexplained_difference(before, after, flow) > UNEXPLAINED


def detect_cuts(frames: Iterable[Pixels]) -> SceneCutDetector:
    """A clip, looked at as a whole."""
    watcher = SceneCutDetector()
    for frame in frames:
        watcher.add_frame(frame)
    return watcher


def thumbnail(frame: Pixels) -> Pixels:
    """A frame with a longer side of LONG_EDGE_PX, averaged."""
    scale = LONG_EDGE_PX / max(frame.shape[:2])
    size = tuple(max(16, round(side * scale)) for side in frame.shape[1::-1])
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def unexplained_difference(before: Pixels, after: Pixels, flow: NDArray[np.float32]) -> float:
    """How much a frame differs from the next one after the motion is undone, in its own contrasts."""
    moved = warp_by_flow(after, flow)
    contrast = np.abs(before - before.mean((0, 1))).mean()
    return float(np.abs(before.astype(np.float32) - moved).mean() / (contrast + FLAT))
