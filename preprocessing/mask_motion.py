"""Masks without any weights: what moves against the camera; and masks mended by what else a clip shows."""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import media
from alignment.dis_flow import DisFlow
from alignment.layers import align_layer
from command_line import UserError
from config import Config
from masks.cues import SmallClip, background_differences, motion_difference, shrink_video
from masks.refinement import refine_masks, smooth_along_flow
from media.clip import Clip, open_clip
from media.flows import BACKWARD, FORWARD
from unwrap_utils import Video, consistent_flow, empty_video, store_flow

LONG_EDGE_PX = 480  # masks are found at this size, and fitted to the edges of the frames as they are
NOISE_PX = 0.15  # motion below it, at the size of the evidence, says nothing
SMALLEST_SHARE, LARGEST_SHARE = 0.002, 0.6  # of a frame, that an object may cover
CLEARLY = 2.4  # score of what moves 11 times as much as the usual deviation: water and leaves move less
BARELY = 0.15  # score of the usual deviation itself
FOUND_SHARE = 0.5  # of the frames must show something that moves so clearly, else less will do


def open_small_clip(folder: Path) -> Clip:
    """All frames of a folder and the masks beside it, checked, at LONG_EDGE_PX or their own size if that is smaller."""
    width, height = media.image_size(media.list_images(folder)[0])
    long_edge = min(LONG_EDGE_PX, max(width, height))
    sides = {"resx": long_edge, "resy": None} if width >= height else {"resx": None, "resy": long_edge}
    return open_clip(folder, Config(data_folder=str(folder), maximum_number_of_frames=sys.maxsize, **sides))


def read_small_video(clip: Clip) -> Video:
    """A clip's frames with flow computed on the spot and empty masks."""
    video = empty_video(clip.size)
    flow, before = DisFlow(), None
    for t in tqdm(range(len(clip)), desc="looking at motion", unit="frame"):
        image = clip.frame(t)
        video.frames[t] = torch.from_numpy(image)
        if before is not None:
            there, back = flow(before, image)
            store_flow(video, FORWARD, t - 1, there, consistent_flow(there, back))
            store_flow(video, BACKWARD, t, back, consistent_flow(back, there))
        before = image
    return video


def segment_motion(video: Video) -> NDArray[np.uint8]:
    """(T, H, W) rough masks, 0 and 255, of what moves against the camera. Raises UserError if nothing does.

    The background's motion is a homography per frame that most pixels agree on; what its flow or its colours differ
    from is the object.
    """
    _, height, width = video.size
    background = align_layer(video, np.ones(video.size, bool), "homography")
    clip = shrink_video(video)
    score = motion_score(clip, clip.reduce_transforms(background))
    between = threshold(score)
    inside = largest_parts(score > max(between, CLEARLY))
    if inside.any((1, 2)).mean() < FOUND_SHARE:
        inside = largest_parts(score > max(between, BARELY))
    if not inside.any():
        raise UserError(
            "nothing moves against the background, so masks can't be found by motion; "
            "use --method maskrcnn, or put masks of your own into the folder"
        )
    grown = [
        cv2.resize(each.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR) for each in inside
    ]
    return np.where(np.stack(grown) > 127, 255, 0).astype(np.uint8)


def motion_score(clip: SmallClip, background: NDArray[np.float64]) -> NDArray[np.float32]:
    """(T, h, w): how unlike the background a pixel moves and looks, in logarithms of the usual deviation."""
    moved = motion_difference(clip, background)
    noise = max(float(np.nanmedian(moved)), NOISE_PX)
    motion = np.log(np.nan_to_num(moved, nan=noise) / noise + 0.1)
    still = moved < 2 * noise
    looks = background_differences(clip, background, still)[0]
    usual = float(np.nanmedian(looks))
    look = np.log(np.nan_to_num(looks, nan=usual) / max(usual, 1e-3) + 0.1)
    return smooth_along_flow(clip, (motion + 0.5 * look).astype(np.float32))


def threshold(score: NDArray[np.float32]) -> float:
    """Between the two groups of values (Otsu 1979)."""
    low, high = np.quantile(score, [0.001, 0.999])
    levels = ((score.clip(low, high) - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    level, _ = cv2.threshold(levels.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(low + (level + 0.5) / 255 * (high - low))


def largest_parts(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of every frame (T, h, w)."""
    return np.stack([largest_part(each) for each in inside])


def largest_part(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a frame (h, w); nothing if it is too small or too large for an object."""
    opened = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, facts, _ = cv2.connectedComponentsWithStats(opened)
    if count < 2:
        return np.zeros_like(inside)
    best = 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax())
    share = facts[best, cv2.CC_STAT_AREA] / inside.size
    return labels == best if SMALLEST_SHARE < share < LARGEST_SHARE else np.zeros_like(inside)


def refine_to_frames(
    video: Video, rough: NDArray[np.uint8], frames: list[Path], wanted: list[Path]
) -> Iterator[NDArray[np.uint8]]:
    """Yield a mask (H, W), 0 and 255, of each wanted frame at its own size, from rough ones (T, h, w) of all frames."""
    inside = rough > 127
    background = align_layer(video, ~inside, "homography")
    foreground = align_layer(video, inside, "affine")
    evidence = refine_masks(shrink_video(video), rough, background, foreground)
    for path in wanted:
        t = frames.index(path)
        yield np.where(evidence.upsample(media.read_rgb(path), t) > 0.5, 255, 0).astype(np.uint8)
