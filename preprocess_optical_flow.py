"""Optical flow between neighbouring frames, both ways."""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from command_line import UserError, named, parser, run_script, warn


def main(arguments: list[str] | None = None) -> None:
    """Write NAME_flow/A_B.npy for every two neighbouring frames A and B, both ways; whole files stay."""
    options = flow_flags().parse_args(arguments)
    if options.max_long_edge < 2:
        raise UserError(f"--max_long_edge is {options.max_long_edge}, expected pixels, such as 768")

    from tqdm import tqdm

    import media

    video = named(options.vid_path)
    frames = frame_paths(video)
    size = fitting(media.image_size(frames[0]), options.max_long_edge)
    folder = video.with_name(video.name + "_flow")
    pairs = [pair for a, b in pairwise(frames) for pair in ((a, b), (b, a))]
    sizes = {pair: flow_size(folder / pair_name(*pair)) for pair in pairs}
    missing = [pair for pair in pairs if sizes[pair] is None]
    if other := [pair for pair in pairs if sizes[pair] not in (None, size)]:
        kept = "{} x {}".format(*sizes[other[0]])
        warn(f"{folder}: {len(other)} flow files of another size ({kept}) are kept; delete them to compute them anew")
    if not missing:
        print(f"all {len(pairs)} flow files are there already: {folder}")
        return
    method = choose_method(options.method, options.weights)
    media.make_folder(folder)
    print(f"{len(missing)} of {len(pairs)} flow files at {size[0]} x {size[1]}, writing to {folder}", flush=True)
    for a, b in tqdm(missing, desc="flow", unit="pair"):
        pictures = [media.resize(media.read_rgb(path), *size) for path in (a, b)]
        write_flow(folder / pair_name(a, b), method(*pictures))
    print(f"wrote {folder}")


def flow_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = parser(
        "Compute how every pixel moves to the next frame and back: NAME_flow/A_B.npy, float32 (height, width, 2),\n"
        "pixels (dx, dy). Files that are there and whole are kept, so an interrupted run goes on.",
        "python preprocess_optical_flow.py --vid-path data/swan --max_long_edge 768",
    )
    flags.add_argument("--vid-path", type=Path, required=True, help="folder of frames")
    flags.add_argument(
        "--max_long_edge", type=int, default=768, help="longer side at which flow is computed, pixels (default: 768)"
    )
    flags.add_argument(
        "--method",
        choices=("auto", "raft", "dis", "raft-thirdparty"),
        default="auto",
        help="raft: torchvision's RAFT (large), the most accurate; dis: OpenCV's DIS, no weights, seconds per clip; "
        "raft-thirdparty: the published code, a git submodule; auto (default): raft if its weights can be had",
    )
    flags.add_argument("--weights", type=Path, help="RAFT weights as a local file (default: downloaded once)")
    return flags


def frame_paths(folder: Path) -> list[Path]:
    """The frames, at least two. Raises UserError."""
    from media import list_images

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --vid-path takes the folder of frames")
    frames = list_images(folder)
    if len(frames) < 2:
        raise UserError(f"{folder}: holds {len(frames)} images; flow needs at least 2 frames")
    return frames


def fitting(size: tuple[int, int], max_long_edge: int) -> tuple[int, int]:
    """(width, height) of the same aspect with no side above max_long_edge; never larger than it was."""
    scale = min(1.0, max_long_edge / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def pair_name(a: Path, b: Path) -> str:
    """The published file name of the flow from a to b."""
    return f"{a.name}_{b.name}.npy"


def flow_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a flow file; None if it is missing, damaged or no flow, and has to be computed."""
    import numpy as np

    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, EOFError):
        return None
    return shape[1::-1] if len(shape) == 3 and shape[2] == 2 else None


def write_flow(path: Path, flow) -> None:
    """Write one flow file, whole or not at all."""
    import numpy as np

    from media import written_whole

    with written_whole(path) as temporary:
        np.save(temporary, flow.astype(np.float32))


def choose_method(name: str, weights: Path | None) -> Callable:
    """The function (image, following image) -> flow of a method's name; `auto` says when it falls back."""
    if name == "dis":
        return dis_flow()

    from preprocessing.flow_raft import thirdparty_raft, torchvision_raft
    from unwrap_utils import pick_device

    if name == "raft-thirdparty":
        return thirdparty_raft(weights, pick_device())
    try:
        return torchvision_raft(weights, pick_device())
    except UserError as error:
        if name == "raft" or weights is not None:
            raise
        print(f"falling back to --method dis: {error}", file=sys.stderr, flush=True)
        return dis_flow()


def dis_flow() -> Callable:
    """OpenCV's DIS."""
    from preprocessing.flow_dis import DisFlow

    return DisFlow()


if __name__ == "__main__":
    run_script(main)
