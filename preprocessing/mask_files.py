"""The mask files and folders beside the frames: NAME_maskrcnn/STEM.png, and NAME_maskrcnn_1, ... for single objects."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import media
from command_line import UserError
from media import Pixels
from media.clip import mask_suffixes


def list_frames(folder: Path) -> list[Path]:
    """Return the frames of a clip in order. Raise UserError without the folder or without images in it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --vid-path takes the folder of frames")
    if frames := media.list_images(folder):
        media.check_names(folder, frames)
        return frames
    raise UserError(media.explain_empty_folder(folder))


def list_object_folders(video: Path, objects: int) -> list[Path]:
    """Return the mask folders of the single objects of a clip; empty for a clip with one object."""
    suffixes = mask_suffixes(objects) if objects > 1 else []
    return [video.with_name(video.name + suffix) for suffix in suffixes]


def frames_without_mask(frames: list[Path], folder: Path) -> list[Path]:
    """Return the frames that have no mask in a folder, which need not exist."""
    present = {path.stem for path in media.list_images(folder)} if folder.is_dir() else set()
    return [path for path in frames if path.stem not in present]


def merge_object_masks(frames: list[Path], folders: list[Path]) -> Iterator[Pixels]:
    """Yield for each frame the maximum (H, W) uint8 of its masks in the folders of the single objects."""
    masks_by_stem = [{path.stem: path for path in media.list_images(folder)} for folder in folders]
    kinds = [media.find_mask_kind(masks.values()) for masks in masks_by_stem]
    for frame in frames:
        masks = [media.read_mask(masks[frame.stem], kind) for masks, kind in zip(masks_by_stem, kinds, strict=True)]
        yield np.maximum.reduce(masks)


def read_kept_masks(frames: list[Path], missing: list[Path], sources: list[Path]) -> Iterator[Pixels]:
    """Yield for each missing frame the mask (H, W) uint8 of all objects together.

    sources: for each object a folder of masks named like the frames. Of several objects, the masks of each are also
    written into a folder of its own, before the first mask is yielded.
    """
    paths_by_source = [[source / f"{path.stem}.png" for path in frames] for source in sources]
    kinds = [media.find_mask_kind(paths) for paths in paths_by_source]
    for folder, paths, kind in zip(
        list_object_folders(frames[0].parent, len(sources)), paths_by_source, kinds, strict=False
    ):
        write_object_masks(frames, (media.read_mask(path, kind) for path in paths), folder)
    for path in missing:
        masks = [
            media.read_mask(source / f"{path.stem}.png", kind) for source, kind in zip(sources, kinds, strict=True)
        ]
        yield np.maximum.reduce(masks)


def write_mask_files(frames: list[Path], masks: Iterable[Pixels], folder: Path) -> list[Path]:
    """Write one mask (H, W) uint8 per frame into an existing folder, and return the frames whose masks are empty.

    Either all masks are written or none; a folder that stays empty is removed.
    """
    unfinished = folder.with_name(f".{folder.name}_unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    empty = []
    try:
        for path, mask in zip(frames, tqdm(masks, desc="masks", unit="frame", total=len(frames)), strict=True):
            if mask.max() <= 127:
                empty.append(path)
            media.write_mask(unfinished / f"{path.stem}.png", mask)
        for path in frames:
            (unfinished / f"{path.stem}.png").replace(folder / f"{path.stem}.png")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return empty


def write_object_masks(frames: list[Path], masks: Iterable[Pixels], folder: Path) -> list[Path]:
    """Write the masks of one of several objects into its own folder, and return the frames whose masks are empty."""
    media.make_folder(folder)
    empty = write_mask_files(frames, masks, folder)
    print(f"masks of one object: {folder}")
    return empty
