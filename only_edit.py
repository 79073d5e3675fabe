"""Apply an edit of an atlas, or of frames, to the whole video of a trained run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import UserError, add_trained_run_flags, make_parser, open_run_arguments, run_script

if TYPE_CHECKING:
    from editing.requests import EditRequest, Output
    from media.sound import Audio

FRAME_LAYERS = ("edit_frame_foreground", "edit_frame_background", "edit_frame_object")
FRAME_FLAGS = ("edit_frame_path", "edit_frame_index", "edit_frame_attach", "edit_frame_shape", *FRAME_LAYERS)


def main(arguments: list[str] | None = None) -> None:
    """Write the edited video into a folder."""
    options = make_edit_parser().parse_args(arguments)
    check_flags(options)

    from editing.render_edits import write_edited_video
    from editing.requests import check_request
    from media import fresh_folder, make_folder
    from media.film import check_openexr
    from preprocessing.clip_sound import find_audio
    from rendering.trained_run import open_run

    request = make_request(options)
    if options.format == "exr":
        check_openexr()
    run = open_run(**open_run_arguments(options))
    if options.transfer_from is None:
        check_request(request, run)
    else:
        from editing.transfer import open_source_run, write_transferred_edit

        source = open_source_run(run, options.transfer_from, request)
    audio = None if options.only_edit_layer else find_audio(run.clip)
    folder = make_folder(options.output_folder) if options.overwrite else fresh_folder(options.output_folder)
    output = make_output(options, audio)
    if options.watch:
        from editing.watch import watch_edits

        print(
            f"open {folder / f'edited_{run.clip.name}.mp4'} in a player that repeats it, and save your paint",
            flush=True,
        )
        watch_edits(run, request, folder)
        return
    if options.transfer_from is None:
        write_edited_video(run, request, folder, output)
    else:
        write_transferred_edit(run, source, request, folder, output)
    clip, native_size = run.clip, "{} x {}".format(*run.clip.native_size)
    if not request.is_native and (clip.width, clip.height) != clip.native_size:
        print(f"it has {clip.width} x {clip.height} pixels; --edit_space native keeps the {native_size} of the frames")
    print(f"open {folder / 'edited.png'} and what lies beside it")
    print(f"wrote {folder}")


def make_edit_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = make_parser(
        "Paint an atlas once, or some frames, and the paint follows the object through the whole video.\n"
        "Edits are RGBA pictures, transparent where nothing is to change.",
        "python only_edit.py --trained_model_folder=results/swan_2026 --output_folder=out \\\n"
        "    --edit_foreground_path=painted.png",
    )
    add_trained_run_flags(parser)
    add_atlas_edit_flags(parser)
    add_frame_edit_flags(parser)
    add_rendering_flags(parser)
    return parser


def add_atlas_edit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for pictures over atlases."""
    group = parser.add_argument_group("paint over atlases")
    group.add_argument(
        "--edit_foreground_path",
        type=Path,
        help="RGBA picture over the foreground's atlas: over texture_orig1.png (any square size), or over what "
        "export_atlas.py wrote (with its atlas.json beside it)",
    )
    group.add_argument(
        "--edit_background_path", type=Path, help="the same over the background's atlas, the last texture_orig"
    )
    group.add_argument(
        "--edit_object",
        type=parse_numbered_picture,
        nargs="+",
        action="extend",
        default=[],
        metavar="N:PNG",
        help="RGBA pictures over the atlases of single objects, if the run has several; 1 is the front one: "
        "1:a.png 2:b.png",
    )
    group.add_argument(
        "--edit_object_attach",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="paint on the atlas of these objects shows beyond their outlines, too; 1 is the front one",
    )
    group.add_argument("--atlas", type=Path, help="atlas.json of the pictures painted over (default: beside them)")
    for layer in ("foreground", "background"):
        group.add_argument(
            f"--edit_{layer}_at",
            type=parse_position,
            metavar="X,Y",
            help="the picture is a part of the exported one, at its resolution, that begins at this pixel",
        )
    group.add_argument(
        "--project", type=Path, metavar="FILE", help="the project.json of edit_in_browser.py: all its layers of paint"
    )
    group.add_argument(
        "--transfer_from", type=Path, metavar="OLD_RUN", help="the atlas edits were painted for this run of the clip"
    )


def add_frame_edit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for pictures over frames."""
    group = parser.add_argument_group("paint over frames")
    group.add_argument(
        "--edit_frame",
        type=parse_numbered_picture,
        nargs="+",
        action="extend",
        metavar="N:PNG",
        help="RGBA pictures over frames, by number from 0: 7:a.png 31:b.png; later ones win where they overlap",
    )
    group.add_argument("--use_edit_frame", action="store_true", help="as published: one frame, by the next two flags")
    group.add_argument("--edit_frame_index", type=int, help="number of the painted frame, counting from 0")
    group.add_argument("--edit_frame_path", type=Path, help="RGBA picture over that frame, of the frame's aspect")
    group.add_argument("--edit_frame_mask", type=Path, help="opacity of a frame edit that has none of its own")
    group.add_argument("--edit_frame_foreground", action="store_true", help="only the foreground takes the paint")
    group.add_argument("--edit_frame_background", action="store_true", help="only the background takes the paint")
    group.add_argument(
        "--edit_frame_object", type=int, metavar="N", help="only this object takes the paint, 1 is the front one"
    )
    group.add_argument(
        "--edit_frame_attach",
        type=int,
        metavar="N",
        help="the paint follows this object beyond its outline, too: a hat, horns, a cape; 1 is the front one",
    )
    group.add_argument(
        "--edit_frame_shape",
        type=Path,
        metavar="MASK",
        help="with --edit_frame_attach: the object's new shape in the painted frame, white on black; where it leaves "
        "the object free, what is behind the object shows",
    )


def add_rendering_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that tell how edits are composited over the frames, and what is written."""
    compositing = parser.add_argument_group("how paint is composited over the frames")
    compositing.add_argument("--blend", choices=("normal", "multiply", "screen", "overlay", "color"), default="normal")
    compositing.add_argument("--opacity", type=float, default=1.0, help="of the whole edit, 0 to 1 (default: 1)")
    compositing.add_argument(
        "--edit_space",
        choices=("working", "native"),
        default="working",
        help="native: frames keep their own pixels, the edit is rendered at their size (default: the working size)",
    )
    output = parser.add_argument_group("what is written")
    output.add_argument("--only_edit_layer", action="store_true", help="the edit alone, transparent elsewhere")
    output.add_argument(
        "--format",
        choices=("mp4", "prores", "ffv1", "png", "exr"),
        help="mp4: H.264 (default); prores: ProRes 4444 .mov; lossless, with the bits of the frames: ffv1 (.mkv), a "
        "folder of png, or of exr with linear light (default with --only_edit_layer: png)",
    )
    output.add_argument(
        "--watch",
        action="store_true",
        help="write the video at half size, again whenever a painted file is saved, until Ctrl-C",
    )
    output.add_argument("--crf", type=int, default=18, help="quality of the mp4, 0 (lossless) to 51 (default: 18)")
    output.add_argument("--save_frames", action="store_true", help="also write lossless PNGs to edited_frames/")
    output.add_argument(
        "--overwrite", action="store_true", help="write into the output folder even if it already holds files"
    )


def parse_position(text: str) -> tuple[float, float]:
    """Return the numbers of a flag's X,Y."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected X,Y such as 120,48") from None
    return x, y


def parse_numbered_picture(text: str) -> tuple[int, Path]:
    """Return the number (of a frame or an object) and the path of a flag's N:PNG."""
    number, colon, path = text.partition(":")
    if not colon or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number and a picture such as 7:painted.png")
    return int(number), Path(path)


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other, miss a part, or are out of range."""
    atlas_edit = options.edit_foreground_path or options.edit_background_path or options.edit_object
    frame_flags = [name for name in FRAME_FLAGS if getattr(options, name) not in (None, False)]
    if options.use_edit_frame:
        if options.edit_frame_path is None or options.edit_frame_index is None:
            raise UserError("--use_edit_frame needs --edit_frame_path and --edit_frame_index")
        if atlas_edit:
            raise UserError("give atlas edits or a frame edit, not both: run the second on the result of the first")
        if options.edit_frame:
            raise UserError("--use_edit_frame and --edit_frame exclude each other; leave --use_edit_frame out")
    elif options.edit_frame:
        if needless := [name for name in frame_flags if name in ("edit_frame_path", "edit_frame_index")]:
            raise UserError(f"--{needless[0]} belongs to --use_edit_frame; give --edit_frame N:PNG without it")
    elif frame_flags:
        raise UserError(
            f"--{frame_flags[0]} was given without --use_edit_frame or --edit_frame N:PNG; add one to edit by a frame"
        )
    elif not atlas_edit and not options.project:
        raise UserError(
            "nothing to paint: give --edit_foreground_path, --edit_background_path, --edit_object, --edit_frame, "
            "--use_edit_frame or --project"
        )
    check_attachment_flags(options)
    check_watch_flags(options)
    if options.edit_frame_mask and not (options.use_edit_frame or options.edit_frame):
        raise UserError("--edit_frame_mask belongs to a frame edit")
    for layer in ("foreground", "background"):
        if getattr(options, f"edit_{layer}_at") and not getattr(options, f"edit_{layer}_path"):
            raise UserError(f"--edit_{layer}_at belongs to --edit_{layer}_path")
    numbers = [number for number, _ in options.edit_object]
    numbers += [number for number in (options.edit_frame_object, options.edit_frame_attach) if number is not None]
    numbers += options.edit_object_attach
    if numbers and min(numbers) < 1:
        raise UserError(f"object {min(numbers)}: objects are counted from 1, the front one")
    if options.transfer_from and (options.use_edit_frame or options.edit_frame):
        raise UserError("--transfer_from is for atlas edits; leave it out, edits of frames fit every run")
    if options.transfer_from and options.edit_object_attach:
        raise UserError("--transfer_from moves paint within outlines; leave --edit_object_attach out")
    if options.transfer_from and options.project:
        raise UserError("--transfer_from is for atlas edits; a project keeps its place in the atlases without it")
    if options.transfer_from and not atlas_edit:
        raise UserError("--transfer_from is for atlas edits; give --edit_foreground_path or another one")
    if not 0 <= options.opacity <= 1:
        raise UserError(f"--opacity is {options.opacity}, expected 0 to 1")
    if not 0 <= options.crf <= 51:
        raise UserError(f"--crf is {options.crf}, expected 0 to 51")
    if options.atlas and not atlas_edit:
        raise UserError("--atlas belongs to an atlas edit; give --edit_foreground_path or --edit_background_path")
    if options.only_edit_layer and options.format == "mp4":
        raise UserError(
            "--only_edit_layer needs opacity, which mp4 does not have; use --format prores, ffv1, png or exr"
        )


def check_watch_flags(options: argparse.Namespace) -> None:
    """Raise UserError for flags that --watch has no use for."""
    needless = {
        "transfer_from": options.transfer_from,
        "project": options.project,
        "only_edit_layer": options.only_edit_layer,
        "save_frames": options.save_frames,
        "edit_space native": options.edit_space == "native",
        f"format {options.format}": options.format not in (None, "mp4"),
    }
    for flag, is_given in needless.items():
        if options.watch and is_given:
            raise UserError(f"--watch writes an mp4 at half size; leave --{flag} out until the paint is finished")


def check_attachment_flags(options: argparse.Namespace) -> None:
    """Raise UserError for flags of attached paint and new shapes that contradict each other or miss a part."""
    if options.edit_frame_attach is not None and (
        layer_flags := [name for name in FRAME_LAYERS if getattr(options, name) not in (None, False)]
    ):
        raise UserError(f"--edit_frame_attach gives all paint to one object; leave --{layer_flags[0]} out")
    if options.edit_frame_shape and options.edit_frame_attach is None:
        raise UserError("--edit_frame_shape is the new shape of an object; say of which one: --edit_frame_attach N")
    if options.edit_frame_shape and len(options.edit_frame or []) > 1:
        raise UserError("--edit_frame_shape belongs to one painted frame; give one --edit_frame with it")
    painted = {number for number, _ in options.edit_object} | ({1} if options.edit_foreground_path else set())
    if unpainted := [number for number in options.edit_object_attach if number not in painted]:
        raise UserError(
            f"--edit_object_attach {unpainted[0]} belongs to an atlas edit of that object; give --edit_foreground_path "
            "or --edit_object"
        )


def make_request(options: argparse.Namespace) -> "EditRequest":
    """Turn the flags into an edit request."""
    from editing.project import read_project
    from editing.requests import ALL_OBJECTS, BACKGROUND, AtlasEdit, EditRequest, FrameEdit

    atlas_edits = [AtlasEdit(number - 1, path) for number, path in options.edit_object]
    if options.edit_foreground_path:
        atlas_edits.append(AtlasEdit(0, options.edit_foreground_path, options.edit_foreground_at))
    if options.edit_background_path:
        atlas_edits.append(AtlasEdit(BACKGROUND, options.edit_background_path, options.edit_background_at))
    numbered_pictures = list(options.edit_frame or [])
    if options.use_edit_frame:
        numbered_pictures = [(options.edit_frame_index, options.edit_frame_path)]
    layer_flags = {ALL_OBJECTS: options.edit_frame_foreground, BACKGROUND: options.edit_frame_background}
    layers = [layer for layer, is_chosen in layer_flags.items() if is_chosen]
    layers += [] if options.edit_frame_object is None else [options.edit_frame_object - 1]
    return EditRequest(
        atlas_edits=tuple(atlas_edits),
        atlas_path=options.atlas,
        frame_edits=tuple(
            FrameEdit(number, path, options.edit_frame_mask, options.edit_frame_shape)
            for number, path in numbered_pictures
        ),
        frame_layers=tuple(layers or layer_flags),
        attached_object=None if options.edit_frame_attach is None else options.edit_frame_attach - 1,
        attached_atlases=frozenset(number - 1 for number in options.edit_object_attach),
        project=None if options.project is None else read_project(options.project),
        blend=options.blend,
        opacity=options.opacity,
        is_native=options.edit_space == "native",
        edit_only=options.only_edit_layer,
        is_linear=options.format == "exr",
    )


def make_output(options: argparse.Namespace, audio: "Audio | None") -> "Output":
    """Turn the flags into the format of the edited video."""
    from editing.requests import Output

    kind = options.format or ("png" if options.only_edit_layer else "mp4")
    return Output(kind, options.crf, options.save_frames, audio)


if __name__ == "__main__":
    run_script(main)
