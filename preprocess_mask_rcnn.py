"""Rough masks of the moving object, one per frame."""

import argparse
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
    present = {path.stem for path in list_images(folder)} if folder.is_dir() else set()
    missing = [path for path in frames if path.stem not in present]
    if not missing:
        print(f"all {len(frames)} masks are there already, used as they are: {folder}")
        return
    empty = write_masks(missing, folder, options)
    if empty:
        names = ", ".join(path.name for path in empty[:5]) + (", ..." if len(empty) > 5 else "")
        warn(f"no {options.class_name} found in {len(empty)} of {len(missing)} frames, masks are empty there: {names}")
    print(f"wrote {folder}")


def mask_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = parser(
        "Find the moving object in every frame with Mask R-CNN and write rough masks: NAME_maskrcnn/STEM.png, white\n"
        "inside the object. Masks of your own can be put there instead, under the frames' names; they are kept.",
        "python preprocess_mask_rcnn.py --vid-path data/swan --class_name bird",
    )
    flags.add_argument("--vid-path", type=Path, required=True, help="folder of frames")
    flags.add_argument(
        "--class_name",
        default="anything",
        help="what to look for, a COCO name such as person, dog, car (an unknown one lists them all); "
        "'anything' (default) takes the best-scored instance",
    )
    flags.add_argument("--weights", type=Path, help="Mask R-CNN weights as a local file (default: downloaded once)")
    return flags


def write_masks(frames: list[Path], folder: Path, options: argparse.Namespace) -> list[Path]:
    """Detect and write; returns the frames in which nothing was found, whose masks are empty."""
    import numpy as np
    from tqdm import tqdm

    import media
    from preprocessing.mask_rcnn import MaskRcnn
    from unwrap_utils import pick_device

    detector = MaskRcnn(options.class_name, options.weights, pick_device())
    print(f"{len(frames)} masks to find, writing to {media.make_folder(folder)}", flush=True)
    empty = []
    for path in tqdm(frames, desc="masks", unit="frame"):
        image = media.read_rgb(path)
        mask = detector(image)
        if mask is None:
            empty.append(path)
            mask = np.zeros(image.shape[:2], np.uint8)
        media.write_png(folder / f"{path.stem}.png", mask)
    return empty


if __name__ == "__main__":
    run_script(main)
