"""Write the layers of a trained run as image sequences for compositing, or track a point."""

import argparse
from pathlib import Path

from command_line import (
    UserError,
    add_trained_run_flags,
    make_parser,
    open_run_arguments,
    parse_frame_pixel,
    run_script,
)

KINDS = ("foreground", "background", "alpha", "st_maps", "inverse_st_maps")


def main(arguments: list[str] | None = None) -> None:
    """Write image sequences, or the track of one point, into a folder."""
    options = make_layer_parser().parse_args(arguments)
    if options.track is not None and (
        options.atlas or options.remove_shadow or options.kinds != list(KINDS) or options.format != "png"
    ):
        raise UserError(
            "--track writes the track of a point and no layers; leave --atlas, --kinds, --format and --remove_shadow "
            "out"
        )
    if options.remove_shadow and "background" not in options.kinds:
        raise UserError("--remove_shadow changes the clean plates; add background to --kinds, or leave it out")

    from media import fresh_folder, write_text
    from media.film import check_openexr
    from rendering.trained_run import open_run

    run = open_run(**open_run_arguments(options))
    if options.track is not None:
        from export.track import track_csv, track_point

        layer, track = track_point(run, *options.track)
        text = track_csv(track)
        folder = fresh_folder(options.output_folder)
        write_text(folder / "track.csv", text)
        print(text, end="")
        print(f"a point of the {layer}, visible in {sum(point.is_visible for point in track)} of {len(track)} frames")
        print(f"wrote {folder / 'track.csv'}")
        return

    if options.format == "exr" or {"st_maps", "inverse_st_maps"} & set(options.kinds):
        check_openexr()
    from editing.atlas_file import read_atlas_file
    from export.atlas import export_atlases
    from export.layers import export_layers

    atlas = read_atlas_file(options.atlas, run.checkpoint) if options.atlas else None
    folder = fresh_folder(options.output_folder)
    if options.atlas:
        atlas_folder = options.atlas if options.atlas.is_dir() else options.atlas.parent
    else:
        atlas_folder = folder / "atlas"
        if options.kinds != ["alpha"]:
            atlas = export_atlases(run, fresh_folder(atlas_folder), None, 0, 8)
    export_layers(run, atlas_folder, atlas, folder, options.kinds, options.remove_shadow, options.format)
    if (folder / "layers.png").is_file():  # ST maps alone have no preview
        print(f"open {folder / 'layers.png'}")
    print(f"wrote {folder}")


def make_layer_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = make_parser(
        "Write the layers as image sequences named after the frames, at their size: the object with opacity, the\n"
        "background without it, mattes, and the mappings as EXR ST maps (Nuke's STMap, RE:Map UV). Or track a point.",
        "python export_layers.py --trained_model_folder=results/swan_2026 --output_folder=layers",
    )
    add_trained_run_flags(parser)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what to write (default: all)")
    parser.add_argument(
        "--format",
        choices=("png", "exr"),
        default="png",
        help="png: a folder for each kind (default); exr: one file for each frame with all of them as named layers, in "
        "linear light; inverse ST maps, which have another size, stay files of their own",
    )
    parser.add_argument(
        "--remove_shadow",
        action="store_true",
        help="background: also take out shadows that move with the objects; they are told by their colour",
    )
    parser.add_argument("--atlas", type=Path, help="folder that export_atlas.py wrote (default: export one, too)")
    parser.add_argument(
        "--track",
        type=parse_frame_pixel,
        metavar="X,Y,FRAME",
        help="track this pixel of a frame instead: print and write its position in every frame, in pixels, and whether "
        "it is visible there",
    )
    return parser


if __name__ == "__main__":
    run_script(main)
