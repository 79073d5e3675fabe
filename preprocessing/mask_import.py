"""Masks made elsewhere (SAM 2, After Effects, DAVIS, a matting tool): a folder of pictures, or a video."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import media
from command_line import UserError
from media import Pixels
from media.clip import has_same_aspect
from media.decoding import VIDEO_SUFFIXES, read_video, video_facts
from preprocessing.extract import Span, read_clip_note


def read_masks(source: Path, frames: list[Path], label: int | None, threshold: float | None) -> Iterator[Pixels]:
    """Yield a mask (H, W) uint8 for every frame, 255 inside, from a folder or a video. Raises UserError.

    label: only this one of the labels in the pictures. threshold in [0, 1]: hard masks; None: soft values are kept.
    """
    native = media.image_size(frames[0])
    if source.is_dir():
        masks = masks_in_folder(source, frames, label)
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        if label is not None:
            raise UserError(f"{source}: a video has no labels; leave --label out or give a folder of label pictures")
        masks = masks_in_video(source, frames)
    else:
        raise UserError(f"{source}: no folder and no video; --masks takes a folder of mask pictures or a matte video")
    for name, mask in masks:
        if not has_same_aspect(mask.shape[::-1], native):
            raise UserError(
                f"{name}: is {mask.shape[1]} x {mask.shape[0]}, the frames are {native[0]} x {native[1]}; "
                "masks must have the frames' aspect"
            )
        yield mask if threshold is None else np.where(mask > 255 * threshold, 255, 0).astype(np.uint8)


def masks_in_folder(folder: Path, frames: list[Path], label: int | None) -> Iterator[tuple[Path, Pixels]]:
    """The picture of each frame: by name, or in order if the names are others but the number is right."""
    pictures = media.list_images(folder)
    by_name = {path.stem: path for path in pictures}
    if missing := [frame.stem for frame in frames if frame.stem not in by_name]:
        if len(pictures) != len(frames):
            raise UserError(
                f"{folder} holds {len(pictures)} pictures for {len(frames)} frames, and none is named {missing[0]}; "
                "name masks as their frames, or have one for every frame"
            )
        print(f"{folder}: names differ from the frames'; taken in order, {pictures[0].name} for {frames[0].name}")
        chosen = pictures
    else:
        chosen = [by_name[frame.stem] for frame in frames]
    for path in chosen:
        yield path, media.read_mask(path) if label is None else media.read_labels(path, label)


def masks_in_video(path: Path, frames: list[Path]) -> Iterator[tuple[Path, Pixels]]:
    """The opacity of a video that has any, else its brightness. Raises UserError if it has another number of frames.

    If the frames are a part of a video, and the matte is as long as that, the same part of it is taken.
    """
    count, found = len(frames), 0
    source = opacity_or_brightness(path, span_of_matte(path, frames[0].parent))
    for found, mask in enumerate(itertools.islice(source, count), 1):  # noqa: B007 counted after the loop
        yield path, mask
    if found < count or next(source, None) is not None:
        told = f"only {found}" if found < count else f"more than {count}"
        raise UserError(f"{path}: has {told} frames, the clip has {count}; export a matte of the same frames")


def span_of_matte(path: Path, folder: Path) -> Span:
    """The part of a matte video that belongs to a clip's frames."""
    note, facts = read_clip_note(folder), video_facts(path)
    if note is None or facts.duration_s is None or abs(facts.frames - note.frames) <= 1:
        return Span()
    is_short = facts.duration_s < note.start_s + note.frames / note.fps - 1 / note.fps
    return Span() if is_short else Span(note.start_s, note.end_s, note.every)


def opacity_or_brightness(path: Path, span: Span) -> Iterator[Pixels]:
    """(H, W) uint8 of the frames of a part of a matte video."""
    facts = video_facts(path)
    part = {"start_s": span.start_s, "end_s": span.end_s, "fps": facts.fps if facts.is_variable else None}
    has_alpha = facts.has_alpha and any((mask < 255).any() for mask in read_video(path, **part, alpha=True))
    masks = read_video(path, **part, alpha=True) if has_alpha else (frame.max(-1) for frame in read_video(path, **part))
    return itertools.islice(masks, 0, None, span.every)
