"""Add frames to a finished run: they are fitted to its atlases, and edits made before appear in them, too."""

import argparse
from pathlib import Path

from command_line import UserError, add_clip_flags, add_device_flag, check_seconds, make_parser, quote, run_script

SECONDS_PER_MEGAPIXEL = 0.9  # default time of training for a new frame: .3 s for 768 x 432 pixels
LEAST_SECONDS = 7.0  # The start takes about as long, however few frames are new.


def main(arguments: list[str] | None = None) -> None:
    """Extend a run by the frames that follow its clip, as a new run.

    arguments: of the command line; None takes those of the process. Raises UserError for wrong input and Stopped after
    a signal.
    """
    options = make_extend_parser().parse_args(arguments)
    check_flags(options)

    from editing.atlas_file import note_extension
    from media import list_images
    from preprocessing.flow import FlowRequest, write_clip_flow
    from preprocessing.new_frames import join_new_frames, remove_joined_frames, write_new_masks
    from rendering.trained_run import open_run
    from training.extension import check_extendable, open_extended_clip, start_extension, write_last_frame

    place = {"video_name": options.video_name, "data_folder": options.data_folder}
    run = open_run(options.trained_model_folder, device="cpu", **place)
    check_extendable(run)
    if options.masks is not None and run.clip.objects > 1:
        raise UserError(
            "--masks is for runs with one object; put masks of the new frames beside them, as NAME_maskrcnn_1"
        )
    part = options.start, options.end
    folder = join_new_frames(run.clip, options.frames, options.max_frames, *part, allow_cuts=options.allow_cuts)
    trained = len(run.clip)
    new = len(list_images(folder)) - trained
    print(f"{trained} frames are trained, {new} are new", flush=True)
    clip = open_extended_clip(run, folder, trained + new)
    try:
        write_clip_flow(folder, FlowRequest(options.flow_method, max(run.clip.width, run.clip.height)))
        sources = write_new_masks(run, clip, options.masks)
    except UserError:
        remove_joined_frames(run.clip, clip)
        raise
    megapixels = run.clip.width * run.clip.height / 1e6
    budget = options.time_budget or LEAST_SECONDS + SECONDS_PER_MEGAPIXEL * new * megapixels
    trainer = start_extension(run, clip, sources, budget, options.device)
    note_extension(trainer.checkpoint_path, run.checkpoint)
    trainer.run(with_evaluation=False)
    write_last_frame(trainer)
    print(f"finished; {trainer.folder / 'preview.png'} shows the last frame. To see all frames, and to edit them:")
    print(f"python only_evaluate.py --trained_model_folder={quote(trainer.folder)} --output_folder=out")
    print(f"python only_edit.py --trained_model_folder={quote(trainer.folder)} --output_folder=edited")
    print("with the flags of your edit after it, as they were before")


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for values out of range and for files that do not exist."""
    check_seconds(options, "time_budget")
    if options.start is not None and not 0 <= options.start < float("inf"):
        raise UserError(f"--start is {options.start:g}, expected at least 0")
    if options.max_frames < 1:
        raise UserError(f"--max_frames is {options.max_frames}, expected at least 1")
    if options.masks is not None and not options.masks.exists():
        raise UserError(f"{options.masks}: no such file or folder; --masks takes masks of the new frames")


def make_extend_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = make_parser(
        "Add the frames that follow a run's clip to the run. Their mapping and opacity are fitted to the atlases,\n"
        "which keep what they have and grow where the new frames show more. So edits that were made before appear in\n"
        "the new frames. The result is a new run; the old one stays as it is.",
        "python extend_run.py --trained_model_folder=results/swan_2026 --frames=more_of_swan.mp4",
    )
    add_clip_flags(flags)
    flags.add_argument(
        "--frames",
        type=Path,
        required=True,
        metavar="FOLDER_OR_VIDEO",
        help="the frames that follow; of the video that the run was made from, those after its last frame are taken; "
        "the run's own folder of frames adds those that were left out of the run",
    )
    flags.add_argument(
        "--start",
        type=float,
        metavar="SECONDS",
        help="where the new frames begin in a video (default: after the run's last frame in its own video, else 0)",
    )
    flags.add_argument("--end", type=float, metavar="SECONDS", help="where they end (default: the end of the video)")
    flags.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER_OR_VIDEO",
        help="masks of the new frames (default: those that are there, or else the object is followed from the last "
        "frame of the run)",
    )
    flags.add_argument(
        "--flow_method",
        choices=("auto", "raft", "dis", "raft-thirdparty"),
        default="dis",
        help="see preprocess_optical_flow.py (default: dis)",
    )
    flags.add_argument(
        "--time_budget",
        type=float,
        metavar="SECONDS",
        help=f"for the start and training (default: {LEAST_SECONDS:g} and {SECONDS_PER_MEGAPIXEL:g} per frame and "
        "megapixel)",
    )
    flags.add_argument("--max_frames", type=int, default=500, help="refuse more new frames (default: 500)")
    flags.add_argument("--allow_cuts", action="store_true", help="accept new frames that show another scene")
    add_device_flag(flags)
    return flags


if __name__ == "__main__":
    run_script(main)
