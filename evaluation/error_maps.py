"""The losses as maps, frame by frame: the video `global_info`."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

import loss_utils
from implicit_neural_networks import Layers
from media import Pixels, VideoSet
from media.clip import Clip
from media.flows import FORWARD
from rendering.frame_store import FrameStore
from rendering.frames import Floats, Frame
from unwrap_utils import warp_by_flow

LEAST_RIGIDITY = 2 * 2**0.5
LIMITS = {
    "colour error": (0, 0.2),
    "rigidity": (LEAST_RIGIDITY, 8),
    "flow error, px": (0, 4),
    "opacity change": (0, 0.5),
}
COLUMNS, PANEL_WIDTH_IN, DPI = 3, 4.0, 80


class ErrorMaps:
    """A matplotlib figure drawn once, whose panels are then filled frame by frame: milliseconds, not seconds."""

    def __init__(self, titles: list[str], aspect: float):
        rows = -(-len(titles) // COLUMNS)
        figure = Figure(figsize=(COLUMNS * PANEL_WIDTH_IN, rows * (PANEL_WIDTH_IN * aspect + 0.5)), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        plots = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        figure.subplots_adjust(left=0.02, right=0.97, top=0.93, bottom=0.02, wspace=0.18, hspace=0.15)
        self.colors = matplotlib.colormaps["magma"]
        self.titles, self.norms = titles, []
        for plot, title in zip(plots, titles, strict=False):
            kind = next(kind for kind in LIMITS if title.startswith(kind))
            self.norms.append(Normalize(*LIMITS[kind], clip=True))
            plot.set_title(title, fontsize=10)
            figure.colorbar(ScalarMappable(self.norms[-1], self.colors), ax=plot, fraction=0.04, pad=0.02)
        for plot in plots:
            plot.set_axis_off()
        canvas.draw()
        self.background = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        height = self.background.shape[0]
        boxes = [plot.get_window_extent() for plot in plots[: len(titles)]]
        self.boxes = [(round(b.x0), round(height - b.y1), round(b.width), round(b.height)) for b in boxes]

    def draw(self, maps: dict[str, Floats]) -> Pixels:
        """The figure with the given maps (H, W), one a title."""
        picture = self.background.copy()
        for title, norm, (x, y, width, height) in zip(self.titles, self.norms, self.boxes, strict=True):
            values = cv2.resize(maps[title], (width, height), interpolation=cv2.INTER_AREA)
            picture[y : y + height, x : x + width] = self.colors(norm(values), bytes=True)[..., :3]
        return picture


def rigidity_map(uv: Floats, px_per_uv: float) -> Floats:
    """Eq. 9 at every pixel (H, W) of a mapping (H, W, 2); the first row and column repeat their neighbours."""
    points = torch.from_numpy(uv)
    jacobian = loss_utils.jacobian(points[1:, 1:], points[1:, :-1], points[:-1, 1:], px_per_uv, 1)
    return np.pad(loss_utils.rigidity_loss(jacobian).numpy(), ((1, 0), (1, 0)), mode="edge")


def error_maps(
    frame: Frame, following: Frame | None, error: Floats, flow: NDArray[np.float32] | None, px_per_uv: list[float]
) -> dict[str, Floats]:
    """All maps of one frame by title; those along the flow are zero in the last frame and absent without flow."""
    names = Layers.for_objects(len(frame.alpha)).names
    maps = {"colour error": error}
    layers = list(zip(names, frame.uv, px_per_uv, strict=True))
    maps |= {f"rigidity, {name}": rigidity_map(uv, scale) for name, uv, scale in layers}
    if flow is None:
        return maps
    following = following or frame
    for (name, here, scale), there, share in zip(layers, following.uv, frame.visibility, strict=True):
        apart = np.linalg.norm(warp_by_flow(there, flow) - here, axis=-1) * scale
        maps[f"flow error, px, {name}"] = (apart * share).astype(np.float32)
    maps["opacity change"] = np.abs(warp_by_flow(following.coverage, flow) - frame.coverage)
    return maps


def pair_with_next(store: FrameStore) -> Iterator[tuple[tuple[Frame, Floats], Frame | None]]:
    """Each frame and its error, with the frame after it; None follows the last."""
    after = chain((frame for frame, _ in islice(store, 1, None)), [None])
    return zip(store, after, strict=True)


def write_error_maps(clip: Clip, folder: Path, store: FrameStore, px_per_uv: list[float]) -> None:
    """Write global_info_NAME.mp4: where colour, rigidity and flow are violated."""
    has_flow = clip.sibling_folder("_flow").is_dir()
    still = np.zeros((clip.height, clip.width, 2), np.float32)
    drawing: ErrorMaps | None = None
    with VideoSet(folder, clip.name, clip.fps) as videos:
        progress = tqdm(pair_with_next(store), total=len(clip), desc="error maps", unit="frame")
        for (frame, error), following in progress:
            flow = (clip.flow(frame.t, FORWARD) if following else still) if has_flow else None
            maps = error_maps(frame, following, error, flow, px_per_uv)
            drawing = drawing or ErrorMaps(list(maps), clip.height / clip.width)
            videos.write("global_info", drawing.draw(maps))
