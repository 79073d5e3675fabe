"""Carry an edit of an atlas, or of one frame, through the video of a trained run."""

import argparse
from pathlib import Path

from command_line import UserError, add_trained_run_flags, parser, run_script, trained_run_options

FRAME_FLAGS = ("edit_frame_path", "edit_frame_index", "edit_frame_foreground", "edit_frame_background")


def main(arguments: list[str] | None = None) -> None:
    """Write the edited video into a folder."""
    options = edit_flags().parse_args(arguments)
    check_flags(options)

    from editing import EditRequest, check_request, write_edited_video
    from media import fresh_folder
    from rendering import open_run

    layers = [name for name in ("foreground", "background") if getattr(options, f"edit_frame_{name}")]
    request = EditRequest(
        options.edit_foreground_path,
        options.edit_background_path,
        options.edit_frame_path,
        options.edit_frame_index or 0,
        tuple(layers or ("foreground", "background")),
    )
    run = open_run(*trained_run_options(options))
    check_request(request, run.clip)
    folder = fresh_folder(options.output_folder)
    write_edited_video(run, request, folder, options.save_frames)
    print(f"open {folder / 'edited.png'} and {folder / f'edited_{run.clip.name}.mp4'}")
    print(f"wrote {folder}")


def edit_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = parser(
        "Paint an atlas once, or one frame, and the paint follows the object through the whole video.\n"
        "Edits are RGBA pictures, transparent where nothing is to change.",
        "python only_edit.py --trained_model_folder=results/swan_2026 --video_name=swan --data_folder=data \\\n"
        "    --output_folder=out --edit_foreground_path=painted.png",
    )
    add_trained_run_flags(flags)
    flags.add_argument("--edit_foreground_path", type=Path, help="RGBA picture over texture_orig1.png, any square size")
    flags.add_argument("--edit_background_path", type=Path, help="RGBA picture over texture_orig2.png, any square size")
    flags.add_argument("--use_edit_frame", action="store_true", help="paint on a frame instead of on the atlases")
    flags.add_argument("--edit_frame_index", type=int, help="number of the painted frame, counting from 0")
    flags.add_argument("--edit_frame_path", type=Path, help="RGBA picture over that frame, of the frame's aspect")
    flags.add_argument("--edit_frame_foreground", action="store_true", help="only the foreground takes the paint")
    flags.add_argument("--edit_frame_background", action="store_true", help="only the background takes the paint")
    flags.add_argument("--save_frames", action="store_true", help="also write lossless PNGs to edited_frames/")
    return flags


def check_flags(options: argparse.Namespace) -> None:
    """Refuse combinations of flags that say nothing or two things."""
    atlas_edit = options.edit_foreground_path or options.edit_background_path
    if options.use_edit_frame:
        if options.edit_frame_path is None or options.edit_frame_index is None:
            raise UserError("--use_edit_frame needs --edit_frame_path and --edit_frame_index")
        if atlas_edit:
            raise UserError("give atlas edits or a frame edit, not both: run the second on the result of the first")
    elif given := [name for name in FRAME_FLAGS if getattr(options, name) not in (None, False)]:
        raise UserError(f"--{given[0]} was given without --use_edit_frame; add it to edit by a frame")
    elif not atlas_edit:
        raise UserError("nothing to paint: give --edit_foreground_path, --edit_background_path or --use_edit_frame")


if __name__ == "__main__":
    run_script(main)
