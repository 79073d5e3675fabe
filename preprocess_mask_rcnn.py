"""Rough masks of the moving object, one per frame."""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from command_line import UserError, named, parser, run_script, warn


def main(arguments: list[str] | None = None) -> None:
    """Write NAME_maskrcnn/STEM.png for every frame; masks that are there are used as they are."""
    options = mask_flags().parse_args(arguments)

    from media import list_images

    video = named(options.vid_path)
    if not video.is_dir():
        raise UserError(f"{video}: no such folder; --vid-path takes the folder of frames")
    frames = list_images(video)
    if not frames:
        raise UserError(f"{video}: holds no images; put the frames there as 00000.jpg, 00001.jpg, ...")
    folder = video.with_name(video.name + "_maskrcnn")
    if options.refine:
        refine_masks(frames, folder)
        return
    present = {path.stem for path in list_images(folder)} if folder.is_dir() else set()
    missing = [path for path in frames if path.stem not in present]
    if not missing:
        print(f"all {len(frames)} masks are there already, used as they are: {folder}")
        return
    empty = write_masks(frames, missing, folder, options)
    if empty:
        names = ", ".join(path.name for path in empty[:5]) + (", ..." if len(empty) > 5 else "")
        warn(f"no object found in {len(empty)} of {len(missing)} frames, masks are empty there: {names}")
    print(f"wrote {folder}")


def mask_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = parser(
        "Find the moving object in every frame and write rough masks, white inside: NAME_maskrcnn/STEM.png.\n"
        "Masks of your own can be put there instead, under the frames' names; they are kept. --refine mends them.",
        "python preprocess_mask_rcnn.py --vid-path data/swan --class_name bird",
    )
    flags.add_argument("--vid-path", type=Path, required=True, help="folder of frames")
    flags.add_argument(
        "--method",
        choices=("auto", "maskrcnn", "motion"),
        default="auto",
        help="maskrcnn: torchvision's Mask R-CNN; motion: what moves against the camera, no weights needed; "
        "auto (default): maskrcnn if its weights can be had",
    )
    flags.add_argument(
        "--refine",
        action="store_true",
        help="mend the masks that are there by motion and colour; the ones given are kept in NAME_maskrcnn_rough",
    )
    flags.add_argument(
        "--class_name",
        default="anything",
        help="what to look for, a COCO name such as person, dog, car (an unknown one lists them all); "
        "'anything' (default) takes the best-scored instance",
    )
    flags.add_argument("--weights", type=Path, help="Mask R-CNN weights as a local file (default: downloaded once)")
    return flags


def write_masks(frames: list[Path], missing: list[Path], folder: Path, options: argparse.Namespace) -> list[Path]:
    """Find and write the missing masks; returns the frames in which nothing was found, whose masks are empty."""
    from tqdm import tqdm

    import media

    masks = found_masks(frames, missing, options)
    print(f"{len(missing)} masks to find, writing to {media.make_folder(folder)}", flush=True)
    empty = []
    for path, mask in zip(missing, tqdm(masks, desc="masks", unit="frame", total=len(missing)), strict=True):
        if not mask.any():
            empty.append(path)
        media.write_png(folder / f"{path.stem}.png", mask)
    return empty


def found_masks(frames: list[Path], missing: list[Path], options: argparse.Namespace) -> Iterator:
    """The masks (H, W) uint8 of the missing frames, in order; `auto` says when it falls back."""
    if options.method == "motion":
        return moving(frames, missing)

    from preprocessing.mask_rcnn import MaskRcnn, check_class_name
    from unwrap_utils import pick_device

    check_class_name(options.class_name)
    try:
        detector = MaskRcnn(options.class_name, options.weights, pick_device())
    except UserError as error:
        if options.method == "maskrcnn" or options.weights is not None:
            raise
        print(f"falling back to --method motion: {error}", file=sys.stderr, flush=True)
        return moving(frames, missing)
    return detected(detector, missing)


def detected(detector: Callable, paths: list[Path]) -> Iterator:
    """Yield what a detector finds, an empty mask for nothing."""
    import numpy as np

    from media import read_rgb

    for path in paths:
        image = read_rgb(path)
        mask = detector(image)
        yield np.zeros(image.shape[:2], np.uint8) if mask is None else mask


def moving(frames: list[Path], missing: list[Path]) -> Iterator:
    """The masks of what moves in the clip, of the missing frames."""
    from preprocessing.mask_motion import mended_masks, moving_masks, small_clip_of, small_video

    video = small_video(small_clip_of(frames[0].parent))
    return mended_masks(video, moving_masks(video), frames, missing)


def refine_masks(frames: list[Path], folder: Path) -> None:
    """Mend a folder's masks; the given ones stay beside it as NAME_maskrcnn_rough."""
    import numpy as np
    from tqdm import tqdm

    import media
    from preprocessing.mask_motion import mended_masks, small_clip_of, small_video

    kept, unfinished = (folder.with_name(folder.name + suffix) for suffix in ("_rough", "_unfinished"))
    clip = small_clip_of(frames[0].parent)
    if clip.masks is None:
        raise UserError(f"{folder}: no such folder; --refine mends masks that are there, so find or make some first")
    if kept.exists():
        raise UserError(f"{kept} is there: these masks were mended before; to mend anew, move it back to {folder.name}")
    rough = np.stack([clip.mask(path) for path in clip.masks])
    if not (rough > 127).any():
        raise UserError(f"{folder}: all masks are empty, nothing to learn from; use --method motion in another folder")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    masks = mended_masks(small_video(clip), rough, frames, frames)
    for path, mask in zip(frames, tqdm(masks, desc="mending", unit="frame", total=len(frames)), strict=True):
        media.write_png(unfinished / f"{path.stem}.png", mask)
    folder.rename(kept)
    unfinished.rename(folder)
    print(f"wrote {folder}; the masks as they were are in {kept}")


if __name__ == "__main__":
    run_script(main)
