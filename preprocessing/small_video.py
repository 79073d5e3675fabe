"""A clip at a reduced size with flow between its frames, from which masks are found or refined."""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

import media
from alignment.dis_flow import DisFlow
from command_line import UserError
from config import Config
from media.clip import Clip, open_clip
from media.flows import BACKWARD, FORWARD, flow_size, resize_flow
from media.images import fit_size
from parallel.side_by_side import MOST_STREAM_WORKERS, map_side_by_side, stream_side_by_side
from unwrap_utils import Floats, Video, consistent_pixels, empty_video, store_flow

LONG_EDGE_PX = 480  # Pixels of the longer side. Masks are later fitted to the edges of the frames at their own size.
# Flow without files is computed at this size and then reduced: masks by motion are better than with flow that is
# computed at the reduced size (docs/ablations.md).
FLOW_LONG_EDGE_PX = 768


def open_small_clip(folder: Path) -> Clip:
    """Open all frames of a folder, and the masks beside it, with a longer side of at most LONG_EDGE_PX."""
    width, height = media.image_size(media.list_images(folder)[0])
    long_edge = min(LONG_EDGE_PX, max(width, height))
    config = Config(data_folder=str(folder), maximum_number_of_frames=sys.maxsize)
    is_wide = width >= height
    return open_clip(folder, replace(config, resx=long_edge if is_wide else None, resy=None if is_wide else long_edge))


def read_small_video(clip: Clip) -> Video:
    """Return the frames of a clip with the flow between them, and with empty masks.

    Flow is that of the clip's files, or by DIS between frames without whole files of at least the reduced size.
    """
    video = empty_video(clip.size)
    measure_flow = make_flow_reader(clip)

    def read_frame(t: int) -> None:
        video.frames[t] = torch.from_numpy(clip.frame(t))

    def read_flow(t: int) -> None:
        """Store the flow between frame t and the next one, both ways."""
        forward, backward = measure_flow(t)
        store_flow(video, FORWARD, t, forward, consistent_pixels(forward, backward))
        store_flow(video, BACKWARD, t + 1, backward, consistent_pixels(backward, forward))

    map_side_by_side(read_frame, range(len(clip)))
    pairs = stream_side_by_side(read_flow, range(len(clip) - 1))
    for _ in tqdm(pairs, total=len(clip) - 1, desc="looking at motion", unit="pair"):
        pass
    return video


def make_flow_reader(clip: Clip) -> Callable[[int], tuple[Floats, Floats]]:
    """Return a function that returns the flow from frame t to the next one and back, (H, W, 2) each.

    Several threads may call it.
    """
    width, height = fit_size(clip.native_size, FLOW_LONG_EDGE_PX)
    large = replace(clip, width=width, height=height)
    read_large = lru_cache(2 * MOST_STREAM_WORKERS)(large.frame)  # Each frame belongs to two pairs.
    local = threading.local()  # A DIS object may not be shared by threads.

    def compute_flow(t: int) -> tuple[Floats, Floats]:
        if not hasattr(local, "dis"):
            local.dis = DisFlow()
        forward, backward = local.dis(read_large(t), read_large(t + 1))
        return resize_flow(forward, clip.width, clip.height), resize_flow(backward, clip.width, clip.height)

    def read_flow(t: int) -> tuple[Floats, Floats]:
        try:
            sizes = [flow_size(path) for path in (clip.flow_path(t, FORWARD), clip.flow_path(t + 1, BACKWARD))]
            if all(size is not None and size[0] >= clip.width for size in sizes):  # Coarser flow loses small objects.
                return clip.flow_pair(t)
        except UserError:  # A file is missing, damaged or of other frames.
            pass
        return compute_flow(t)

    return read_flow
