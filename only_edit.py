"""Carry an edit of an atlas, or of frames, through the video of a trained run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import UserError, add_trained_run_flags, make_parser, open_run_arguments, run_script, warn

if TYPE_CHECKING:
    from editing.requests import EditRequest, Output
    from media.clip import Clip
    from media.videos import Audio

SAME_FPS = 0.01
FRAME_LAYERS = ("edit_frame_foreground", "edit_frame_background", "edit_frame_object")
FRAME_FLAGS = ("edit_frame_path", "edit_frame_index", *FRAME_LAYERS)


def main(arguments: list[str] | None = None) -> None:
    """Write the edited video into a folder."""
    options = edit_flags().parse_args(arguments)
    check_flags(options)

    from editing.render_edits import write_edited_video
    from editing.requests import check_request
    from media import fresh_folder, make_folder
    from rendering.trained_run import open_run

    request = edit_request(options)
    run = open_run(**open_run_arguments(options))
    if options.transfer_from is None:
        check_request(request, run)
    else:
        from editing.transfer import open_source_run, write_transferred_edit

        old = open_source_run(run, options.transfer_from, request)
    audio = None if options.only_edit_layer else audio_of(run.clip)
    folder = make_folder(options.output_folder) if options.overwrite else fresh_folder(options.output_folder)
    output = output_of(options, audio)
    if options.transfer_from is not None:
        write_transferred_edit(run, old, request, folder, output)
    else:
        write_edited_video(run, request, folder, output)
    print(f"open {folder / 'edited.png'} and the video beside it")
    print(f"wrote {folder}")


def edit_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = make_parser(
        "Paint an atlas once, or some frames, and the paint follows the object through the whole video.\n"
        "Edits are RGBA pictures, transparent where nothing is to change.",
        "python only_edit.py --trained_model_folder=results/swan_2026 --output_folder=out \\\n"
        "    --edit_foreground_path=painted.png",
    )
    add_trained_run_flags(flags)
    what = flags.add_argument_group("what is painted")
    what.add_argument(
        "--edit_foreground_path",
        type=Path,
        help="RGBA picture over the foreground's atlas: over texture_orig1.png (any square size), or over what "
        "export_atlas.py wrote (with its atlas.json beside it)",
    )
    what.add_argument("--edit_background_path", type=Path, help="the same over the background's: the last texture_orig")
    what.add_argument(
        "--edit_object",
        type=numbered_picture,
        nargs="+",
        action="extend",
        default=[],
        metavar="N:PNG",
        help="RGBA pictures over the atlases of single objects of several, 1 is the front one: 1:a.png 2:b.png",
    )
    what.add_argument("--atlas", type=Path, help="atlas.json of the pictures painted over (default: beside them)")
    for layer in ("foreground", "background"):
        what.add_argument(
            f"--edit_{layer}_at",
            type=position,
            metavar="X,Y",
            help="the picture is a part of the exported one, at its resolution, that begins at this pixel",
        )
    what.add_argument(
        "--edit_frame",
        type=numbered_picture,
        nargs="+",
        action="extend",
        metavar="N:PNG",
        help="RGBA pictures over frames, by number from 0: 7:a.png 31:b.png; later ones win where they overlap",
    )
    what.add_argument("--use_edit_frame", action="store_true", help="as published: one frame, by the next two flags")
    what.add_argument("--edit_frame_index", type=int, help="number of the painted frame, counting from 0")
    what.add_argument("--edit_frame_path", type=Path, help="RGBA picture over that frame, of the frame's aspect")
    what.add_argument("--edit_frame_mask", type=Path, help="opacity of a frame edit that has none of its own")
    what.add_argument("--edit_frame_foreground", action="store_true", help="only the foreground takes the paint")
    what.add_argument("--edit_frame_background", action="store_true", help="only the background takes the paint")
    what.add_argument("--edit_frame_object", type=int, metavar="N", help="only this object does, 1 is the front one")
    what.add_argument(
        "--transfer_from", type=Path, metavar="OLD_RUN", help="the atlas edits were painted for this run of the clip"
    )
    add_rendering_flags(flags)
    return flags


def add_rendering_flags(flags: argparse.ArgumentParser) -> None:
    """How an edit is laid over the frames, and what is written."""
    how = flags.add_argument_group("how it is laid over the frames")
    how.add_argument("--blend", choices=("normal", "multiply", "screen", "overlay", "color"), default="normal")
    how.add_argument("--opacity", type=float, default=1.0, help="of the whole edit, 0 to 1 (default: 1)")
    how.add_argument(
        "--edit_space",
        choices=("working", "native"),
        default="working",
        help="native: frames keep their own pixels, the edit is rendered at their size (default: the working size)",
    )
    out = flags.add_argument_group("what is written")
    out.add_argument("--only_edit_layer", action="store_true", help="the edit alone, transparent elsewhere")
    out.add_argument(
        "--format",
        choices=("mp4", "prores", "png"),
        help="mp4: H.264 (default); prores: ProRes 4444 .mov; png: a folder of lossless pictures "
        "(default with --only_edit_layer: png)",
    )
    out.add_argument("--crf", type=int, default=18, help="quality of the mp4, 0 (lossless) to 51 (default: 18)")
    out.add_argument("--save_frames", action="store_true", help="also write lossless PNGs to edited_frames/")
    out.add_argument("--overwrite", action="store_true", help="write into the output folder though it holds files")


def position(text: str) -> tuple[float, float]:
    """x,y as numbers."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected X,Y such as 120,48") from None
    return x, y


def numbered_picture(text: str) -> tuple[int, Path]:
    """N:PNG as a number, of a frame or an object, and a path."""
    number, colon, path = text.partition(":")
    if not colon or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number and a picture such as 7:painted.png")
    return int(number), Path(path)


def check_flags(options: argparse.Namespace) -> None:
    """Refuse combinations of flags that say nothing or two things."""
    atlas_edit = options.edit_foreground_path or options.edit_background_path or options.edit_object
    frame_flags = [name for name in FRAME_FLAGS if getattr(options, name) not in (None, False)]
    if options.use_edit_frame:
        if options.edit_frame_path is None or options.edit_frame_index is None:
            raise UserError("--use_edit_frame needs --edit_frame_path and --edit_frame_index")
        if atlas_edit:
            raise UserError("give atlas edits or a frame edit, not both: run the second on the result of the first")
        if options.edit_frame:
            raise UserError("--edit_frame says which frames are painted; leave --use_edit_frame out")
    elif options.edit_frame:
        if extra := [name for name in frame_flags if name in ("edit_frame_path", "edit_frame_index")]:
            raise UserError(f"--{extra[0]} belongs to --use_edit_frame; --edit_frame N:PNG says it all")
    elif frame_flags:
        raise UserError(f"--{frame_flags[0]} was given without --use_edit_frame; add it to edit by a frame")
    elif not atlas_edit:
        raise UserError(
            "nothing to paint: give --edit_foreground_path, --edit_background_path, --edit_object, --edit_frame or "
            "--use_edit_frame"
        )
    if options.edit_frame_mask and not (options.use_edit_frame or options.edit_frame):
        raise UserError("--edit_frame_mask belongs to a frame edit")
    for layer in ("foreground", "background"):
        if getattr(options, f"edit_{layer}_at") and not getattr(options, f"edit_{layer}_path"):
            raise UserError(f"--edit_{layer}_at belongs to --edit_{layer}_path")
    numbers = [number for number, _ in options.edit_object]
    numbers += [] if options.edit_frame_object is None else [options.edit_frame_object]
    if numbers and min(numbers) < 1:
        raise UserError(f"object {min(numbers)}: objects are counted from 1, the front one")
    if options.transfer_from and (options.use_edit_frame or options.edit_frame):
        raise UserError("--transfer_from carries atlas edits over; edits of frames need no carrying, give them alone")
    if options.transfer_from and not atlas_edit:
        raise UserError("--transfer_from carries atlas edits over; give --edit_foreground_path or another")
    if not 0 <= options.opacity <= 1:
        raise UserError(f"--opacity is {options.opacity}, expected 0 to 1")
    if not 0 <= options.crf <= 51:
        raise UserError(f"--crf is {options.crf}, expected 0 to 51")
    if options.atlas and not atlas_edit:
        raise UserError("--atlas belongs to an atlas edit; give --edit_foreground_path or --edit_background_path")
    if options.only_edit_layer and options.format == "mp4":
        raise UserError("--only_edit_layer needs opacity, which mp4 has not; use --format prores or png")


def edit_request(options: argparse.Namespace) -> "EditRequest":
    """What the flags ask for."""
    from editing.requests import ALL_OBJECTS, BACKGROUND, AtlasEdit, EditRequest, FrameEdit

    atlases = [AtlasEdit(number - 1, path) for number, path in options.edit_object]
    if options.edit_foreground_path:
        atlases.append(AtlasEdit(0, options.edit_foreground_path, options.edit_foreground_at))
    if options.edit_background_path:
        atlases.append(AtlasEdit(BACKGROUND, options.edit_background_path, options.edit_background_at))
    painted = list(options.edit_frame or [])
    if options.use_edit_frame:
        painted = [(options.edit_frame_index, options.edit_frame_path)]
    chosen = {ALL_OBJECTS: options.edit_frame_foreground, BACKGROUND: options.edit_frame_background}
    layers = [layer for layer, is_chosen in chosen.items() if is_chosen]
    layers += [] if options.edit_frame_object is None else [options.edit_frame_object - 1]
    return EditRequest(
        atlases=tuple(atlases),
        atlas_path=options.atlas,
        frames=tuple(FrameEdit(number, path, options.edit_frame_mask) for number, path in painted),
        frame_layers=tuple(layers or chosen),
        blend=options.blend,
        opacity=options.opacity,
        is_native=options.edit_space == "native",
        is_alone=options.only_edit_layer,
    )


def output_of(options: argparse.Namespace, audio: "Audio | None") -> "Output":
    """What the flags want written."""
    from editing.requests import Output

    kind = options.format or ("png" if options.only_edit_layer else "mp4")
    return Output(kind, options.crf, options.save_frames, audio)


def audio_of(clip: "Clip") -> "Audio | None":
    """The sound of the video that the clip's frames come from, as far as it is known and still there."""
    from media.videos import Audio
    from preprocessing.extract import read_clip_note

    note = read_clip_note(clip.folder)
    if note is None or not note.has_audio:
        return None
    if abs(clip.fps - note.fps) > SAME_FPS:
        warn(f"the video is written at {clip.fps:g} frames per second instead of {note.fps:g}, without its sound")
        return None
    source = Path(note.source)
    if not source.is_file():
        warn(f"{source} is not there any more, the edited video is silent")
        return None
    return Audio(source, note.start_s, note.end_s)


if __name__ == "__main__":
    run_script(main)
