"""Maps of the losses for each frame, and the video `global_info` that shows them."""

from contextlib import closing
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from tqdm import tqdm

import loss_utils
from implicit_neural_networks import Layers
from media import Pixels, VideoSet
from media.clip import Clip
from media.flows import FORWARD
from parallel.side_by_side import stream_side_by_side
from rendering.frame_store import FrameStore
from rendering.frames import Floats, Frame
from unwrap_utils import warp_by_flow

LEAST_RIGIDITY = 2 * 2**0.5  # Rigidity loss (Eq. 9) of a rotation, the smallest value.
VALUE_RANGES = {  # Values at the two ends of the colour scale, by the beginning of a map's title.
    "colour error": (0, 0.2),
    "rigidity": (LEAST_RIGIDITY, 8),
    "flow error, px": (0, 4),
    "opacity change": (0, 0.5),
}
COLUMNS = 3  # Maps side by side.
PANEL_WIDTH_IN = 4.0  # Width of a map, inches.
DPI = 80  # Pixels per inch.


class ErrorMapFigure:
    """A matplotlib figure with one panel for each map.

    Titles and colour scales are drawn once. For each frame only the pixels of the panels are replaced, which takes
    milliseconds where matplotlib would take seconds.
    """

    def __init__(self, titles: list[str], aspect: float):
        """Draw the figure without maps. aspect: height of a map divided by its width."""
        rows = -(-len(titles) // COLUMNS)
        figure = Figure(figsize=(COLUMNS * PANEL_WIDTH_IN, rows * (PANEL_WIDTH_IN * aspect + 0.5)), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        plots = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        figure.subplots_adjust(left=0.02, right=0.97, top=0.93, bottom=0.02, wspace=0.18, hspace=0.15)
        self.colors = matplotlib.colormaps["magma"]
        self.titles = titles
        self.norms: list[Normalize] = []
        for plot, title in zip(plots, titles, strict=False):
            kind = next(kind for kind in VALUE_RANGES if title.startswith(kind))
            self.norms.append(Normalize(*VALUE_RANGES[kind], clip=True))
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
        """Return the figure as an image (h, w, 3). maps: (H, W) by title."""
        image = self.background.copy()
        for title, norm, (x, y, width, height) in zip(self.titles, self.norms, self.boxes, strict=True):
            values = cv2.resize(maps[title], (width, height), interpolation=cv2.INTER_AREA)
            image[y : y + height, x : x + width] = self.colors(norm(values), bytes=True)[..., :3]
        return image


def rigidity_map(uv: Floats, px_per_uv: float) -> Floats:
    """Return the rigidity loss (Eq. 9) of a mapping at every pixel, (H, W).

    uv: (H, W, 2). The first row and column have no upper or left neighbour and repeat the next row or column.
    """
    points = torch.from_numpy(uv)
    jacobian = loss_utils.jacobian(points[1:, 1:], points[1:, :-1], points[:-1, 1:], px_per_uv, 1)
    return np.pad(loss_utils.rigidity_loss(jacobian).numpy(), ((1, 0), (1, 0)), mode="edge")


def error_maps(
    frame: Frame, next_frame: Frame | None, color_error: Floats, flow: Floats | None, px_per_uv: list[float]
) -> dict[str, Floats]:
    """Return all maps (H, W) of one frame by title.

    next_frame: None for the last frame of the clip, whose flow errors and opacity changes are zero. flow: (H, W, 2)
    pixels to the next frame; None leaves out the maps that need flow. px_per_uv: pixels per unit of uv for each layer.
    """
    names = Layers.for_objects(len(frame.alpha)).names
    maps = {"colour error": color_error}
    layers = list(zip(names, frame.uv, px_per_uv, strict=True))
    maps |= {f"rigidity, {name}": rigidity_map(uv, scale) for name, uv, scale in layers}
    if flow is None:
        return maps
    next_frame = next_frame or frame
    for (name, uv, scale), next_uv, visibility in zip(layers, next_frame.uv, frame.visibility, strict=True):
        distance_px = np.hypot(*np.moveaxis(warp_by_flow(next_uv, flow) - uv, -1, 0)) * scale
        maps[f"flow error, px, {name}"] = (distance_px * visibility).astype(np.float32)
    maps["opacity change"] = np.abs(warp_by_flow(next_frame.coverage, flow) - frame.coverage)
    return maps


def write_error_maps(clip: Clip, folder: Path, store: FrameStore, px_per_uv: list[float]) -> None:
    """Write global_info_NAME.mp4, which shows where colour, rigidity, flow and opacity have errors.

    px_per_uv: pixels per unit of uv for each layer.
    """
    has_flow = clip.sibling_folder("_flow").is_dir()
    zero_flow = np.zeros((clip.height, clip.width, 2), np.float32)

    def compute_maps(t: int) -> dict[str, Floats]:
        next_frame = store.frame(t + 1) if t + 1 < store.count else None
        flow = (clip.flow(t, FORWARD) if next_frame else zero_flow) if has_flow else None
        return error_maps(store.frame(t), next_frame, store.error(t), flow, px_per_uv)

    figure = ErrorMapFigure(list(compute_maps(0)), clip.height / clip.width)
    pictures = stream_side_by_side(lambda t: figure.draw(compute_maps(t)), range(store.count))
    with closing(pictures), VideoSet(folder, clip.name, clip.fps, clip.times_s) as videos:
        for picture in tqdm(pictures, total=len(clip), desc="error maps", unit="frame"):
            videos.write("global_info", picture)
