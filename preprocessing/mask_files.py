"""Mask files beside the frames."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import media
from command_line import UserError
from media import Pixels


def list_frames(folder: Path) -> list[Path]:
    """The frames of a clip. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --vid-path takes the folder of frames")
    if frames := media.list_images(folder):
        return frames
    raise UserError(f"{folder}: holds no images; put the frames there as 00000.jpg, 00001.jpg, ...")


def frames_without_mask(frames: list[Path], folder: Path) -> list[Path]:
    """The frames that have no mask in a folder."""
    present = {path.stem for path in media.list_images(folder)} if folder.is_dir() else set()
    return [path for path in frames if path.stem not in present]


def merge_object_masks(frames: list[Path], folders: list[Path]) -> Iterator[Pixels]:
    """The masks of all objects together, from the folders of each."""
    named_masks = [{path.stem: path for path in media.list_images(folder)} for folder in folders]
    for frame in frames:
        yield np.maximum.reduce([media.read_mask(masks[frame.stem]) for masks in named_masks])


def write_mask_files(frames: list[Path], masks: Iterable[Pixels], folder: Path) -> list[Path]:
    """Write one mask per frame, all or none; returns the frames whose masks are empty."""
    unfinished = folder.with_name(f".{folder.name}_unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    empty = []
    try:
        for path, mask in zip(frames, tqdm(masks, desc="masks", unit="frame", total=len(frames)), strict=True):
            if mask.max() <= 127:
                empty.append(path)
            media.write_png(unfinished / f"{path.stem}.png", mask)
        for path in frames:
            (unfinished / f"{path.stem}.png").replace(folder / f"{path.stem}.png")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return empty
