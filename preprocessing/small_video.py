"""A clip at a reduced size with flow computed from its frames, from which masks are found or refined."""

import sys
import threading
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import media
from alignment.dis_flow import DisFlow
from config import Config
from media.clip import Clip, open_clip
from media.flows import BACKWARD, FORWARD
from parallel.side_by_side import map_side_by_side, stream_side_by_side
from unwrap_utils import Video, consistent_pixels, empty_video, store_flow

LONG_EDGE_PX = 480  # Pixels of the longer side. Masks are later fitted to the edges of the frames at their own size.


def open_small_clip(folder: Path) -> Clip:
    """Open all frames of a folder, and the masks beside it, with a longer side of at most LONG_EDGE_PX."""
    width, height = media.image_size(media.list_images(folder)[0])
    long_edge = min(LONG_EDGE_PX, max(width, height))
    config = Config(data_folder=str(folder), maximum_number_of_frames=sys.maxsize)
    is_wide = width >= height
    return open_clip(folder, replace(config, resx=long_edge if is_wide else None, resy=None if is_wide else long_edge))


def read_small_video(clip: Clip) -> Video:
    """Return the frames of a clip with DIS flow between them, and with empty masks."""
    video = empty_video(clip.size)
    local = threading.local()  # A DIS object may not be shared by threads.

    def read_frame(t: int) -> None:
        video.frames[t] = torch.from_numpy(clip.frame(t))

    def compute_flow(t: int) -> None:
        """Store the flow between frame t and the next one, both ways."""
        if not hasattr(local, "dis"):
            local.dis = DisFlow()
        forward, backward = local.dis(video.frames[t].numpy(), video.frames[t + 1].numpy())
        store_flow(video, FORWARD, t, forward, consistent_pixels(forward, backward))
        store_flow(video, BACKWARD, t + 1, backward, consistent_pixels(backward, forward))

    map_side_by_side(read_frame, range(len(clip)))
    pairs = stream_side_by_side(compute_flow, range(len(clip) - 1))
    for _ in tqdm(pairs, total=len(clip) - 1, desc="looking at motion", unit="pair"):
        pass
    return video
