"""Write the atlases of a trained run as pictures to paint on."""

import argparse
from pathlib import Path

from command_line import UserError, add_trained_run_flags, make_parser, open_run_arguments, quote, run_script, warn

SMALLEST_PX, LARGEST_PX = 64, 8192  # Limits of --resolution, in pixels.


def main(arguments: list[str] | None = None) -> None:
    """Write atlas images, guides, .ora files and atlas.json into a folder."""
    options = make_atlas_parser().parse_args(arguments)
    resolution = parse_resolution(options.resolution)
    if options.padding < 0:
        raise UserError(f"--padding is {options.padding}, expected a number of pixels from 0 on")
    if not 0 <= options.room <= LARGEST_PX:
        raise UserError(f"--room is {options.room}, expected a number of pixels, 0 to {LARGEST_PX}")
    if options.look_frames < 0:
        raise UserError(f"--look_frames is {options.look_frames}, expected a number of frames, or 0 for no looks")

    from editing.layered_files import check_psd
    from export.atlas import export_atlases
    from export.looks import MOST_LOOKS, choose_look_frames
    from media import fresh_folder
    from rendering.trained_run import open_run

    formats = [name for name in options.format if name != "png"]
    if "psd" in formats:
        check_psd(options.output_folder)
    run = open_run(**open_run_arguments(options))
    looks = len(choose_look_frames(len(run.clip), options.look_frames))
    if looks > MOST_LOOKS:
        raise UserError(
            f"--look_frames {options.look_frames}: {looks} looks of each layer, expected at most {MOST_LOOKS}; give a "
            "larger number of frames"
        )
    if options.look_frames and not looks:
        warn(f"--look_frames {options.look_frames}: the clip has {len(run.clip)} frames, too few for two looks")
    folder = fresh_folder(options.output_folder)
    atlas = export_atlases(
        run, folder, resolution, options.padding, options.bits, options.room, formats, options.look_frames
    )
    for name in dict.fromkeys(look.image.rpartition("_look_")[0] for look in atlas.looks):
        print(f"open {folder / f'{name}_looks.png'}; paint on one of these looks shows around its frame only")
    where = f'in the layer "paint here" of a .{formats[0]} file' if formats else "over a layer's picture"
    print(f"open {folder / 'atlases.png'}; paint {where}, save it, and apply it with:")
    quoted = quote(options.trained_model_folder)
    command = f"  python only_edit.py --trained_model_folder={quoted} --output_folder=edited"
    flags = []
    for image in atlas.layers:
        if image.layer == 0:
            flag = "--edit_foreground_path="
        elif run.model.layers[image.layer].is_background:
            flag = "--edit_background_path="
        else:
            flag = f"--edit_object {image.layer + 1}:"
        painted = Path(image.image).with_suffix(f".{formats[0]}") if formats else f"painted_{image.image}"
        flags.append(f'{flag}"{folder / painted}"')
    if formats:  # What is not painted on changes nothing, so all layers can be given.
        print(f"{command} {' '.join(flags)}")
    else:
        for flag in flags:
            print(f"{command} {flag}")
    print(f"wrote {folder}")


def make_atlas_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = make_parser(
        "Write each layer's atlas as a picture to paint on: cropped to what is visible, as fine as the video,\n"
        "transparent where no frame shows it; with a guide, a layered file to paint in, and atlas.json, which tells\n"
        "only_edit.py where the paint belongs.",
        "python export_atlas.py --trained_model_folder=results/swan_2026 --output_folder=atlas",
    )
    add_trained_run_flags(parser)
    parser.add_argument("--resolution", default="auto", help="longer side in pixels (default: auto, as in the video)")
    parser.add_argument(
        "--padding", type=int, default=0, help="pixels by which the visible part is extended (default: 0)"
    )
    parser.add_argument(
        "--room",
        type=int,
        default=0,
        help="empty pixels around objects, to paint a hat or a cape that only_edit.py attaches (--edit_object_attach)",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=("ora", "psd", "png"),
        default=["ora"],
        help="layered files to paint in: ora (Krita, GIMP), psd (Photoshop, Affinity), or png for pictures alone "
        "(default: ora)",
    )
    parser.add_argument(
        "--look_frames",
        type=int,
        default=0,
        metavar="FRAMES",
        help="also write one picture of each atlas for every FRAMES frames, to paint on what a single picture cannot "
        "show, such as legs that cross; such paint shows around its frame only (default: 0, none)",
    )
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help="per channel of the atlases (default: 8)")
    return parser


def parse_resolution(text: str) -> int | None:
    """Return --resolution as a number of pixels, or None for "auto". Raises UserError for anything else."""
    if text == "auto":
        return None
    if not (text.isdecimal() and SMALLEST_PX <= int(text) <= LARGEST_PX):
        raise UserError(f"--resolution is {text!r}, expected auto or pixels, {SMALLEST_PX} to {LARGEST_PX}")
    return int(text)


if __name__ == "__main__":
    run_script(main)
