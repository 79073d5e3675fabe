"""Optical flow between neighbouring frames, both ways."""

import argparse
from pathlib import Path

from command_line import UserError, make_parser, run_script


def main(arguments: list[str] | None = None) -> None:
    """Write the flow of every two neighbouring frames, both ways, into NAME_flow/; whole files stay."""
    options = flow_flags().parse_args(arguments)
    if options.max_long_edge < 2:
        raise UserError(f"--max_long_edge is {options.max_long_edge}, expected pixels, such as 768")
    if (options.method == "import") != (options.flow is not None):
        raise UserError("--flow FOLDER and --method import belong together; give both or neither")

    from preprocessing.flow import FlowRequest, write_clip_flow

    write_clip_flow(
        options.vid_path,
        FlowRequest(options.method, options.max_long_edge, options.weights, options.flow, options.format),
    )


def flow_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = make_parser(
        "Compute how every pixel moves to the next frame and back: NAME_flow/A_B.npz, float16 (height, width, 2)\n"
        "under the key 'flow', pixels (dx, dy). Whole files that are there are kept, so an interrupted run goes on.",
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
        help="raft: torchvision's RAFT (large), the most accurate; dis: OpenCV's DIS, no weights, seconds per clip; "
        "raft-thirdparty: the published code, a git submodule; import: files of another program, see --flow; "
        "auto (default): raft if its weights can be had",
    )
    flags.add_argument("--weights", type=Path, help="RAFT weights as a local file (default: downloaded once)")
    flags.add_argument(
        "--flow", type=Path, help="import: folder of .flo, .npy or .npz files named A_B after the frames"
    )
    flags.add_argument(
        "--format",
        choices=("npz", "npy"),
        default="npz",
        help="npz (default): float16, a tenth of the size; npy: float32 as the published code writes and reads",
    )
    return flags


if __name__ == "__main__":
    run_script(main)
