"""Compute the optical flow between neighbouring frames of a clip, in both directions."""

import argparse
from pathlib import Path

from command_line import UserError, make_parser, run_script


def main(arguments: list[str] | None = None) -> None:
    """Write the flow between neighbouring frames into NAME_flow/. Whole files that exist are kept."""
    options = make_flow_parser().parse_args(arguments)
    if options.max_long_edge < 2:
        raise UserError(f"--max_long_edge is {options.max_long_edge}, expected at least 2 pixels, such as 768")
    if (options.method == "import") != (options.flow is not None):
        raise UserError("--flow FOLDER and --method import belong together; give both or neither")

    from preprocessing.flow import FlowRequest, write_clip_flow

    write_clip_flow(
        options.vid_path,
        FlowRequest(
            method=options.method,
            max_long_edge=options.max_long_edge,
            weights=options.weights,
            source=options.flow,
            format=options.format,
        ),
    )


def make_flow_parser() -> argparse.ArgumentParser:
    """Return the argument parser of this script."""
    flags = make_parser(
        "Compute how every pixel moves to the next frame and to the previous one: NAME_flow/A_B.npz, float16\n"
        "(height, width, 2) under the key 'flow', pixels (dx, dy). Whole files that exist are kept, so an interrupted\n"
        "run continues where it was stopped.",
        "python preprocess_optical_flow.py --vid-path data/swan --max_long_edge 768",
    )
    flags.add_argument("--vid-path", type=Path, required=True, help="folder of frames")
    flags.add_argument(
        "--max_long_edge", type=int, default=768, help="longer side at which flow is computed, pixels (default: 768)"
    )
    flags.add_argument(
        "--method",
        choices=("auto", "raft", "dis", "raft-thirdparty", "import"),
        default="auto",
        help="raft: torchvision's RAFT (large), the most accurate; dis: OpenCV's DIS, no weights, takes "
        "seconds per clip; "
        "raft-thirdparty: the published code, a git submodule; import: files of another program, see --flow; "
        "auto (default): raft if its weights can be had, else dis",
    )
    flags.add_argument("--weights", type=Path, help="RAFT weights as a local file (default: downloaded once)")
    flags.add_argument(
        "--flow", type=Path, help="import: folder of .flo, .npy or .npz files named A_B after the frames"
    )
    flags.add_argument(
        "--format",
        choices=("npz", "npy"),
        default="npz",
        help="npz (default): float16, about a tenth of the size; npy: float32 as the published code writes and reads",
    )
    return flags


if __name__ == "__main__":
    run_script(main)
