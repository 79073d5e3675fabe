"""Write the layers of a trained run as image sequences for compositing, or follow a point."""

import argparse
from pathlib import Path

from command_line import UserError, add_trained_run_flags, make_parser, open_run_arguments, pixel_of_frame, run_script

KINDS = ("foreground", "background", "alpha", "st_maps", "inverse_st_maps")


def main(arguments: list[str] | None = None) -> None:
    """Write sequences, or one point's path, into a folder."""
    options = layer_flags().parse_args(arguments)
    if options.track is not None and (options.atlas or options.kinds != list(KINDS)):
        raise UserError("--track follows a point and writes no layers; leave --atlas and --kinds out")

    from export.st_maps import check_st_maps
    from media import fresh_folder, write_text
    from rendering.trained_run import open_run

    run = open_run(**open_run_arguments(options))
    if options.track is not None:
        from export.track import track_csv, track_point

        layer, path = track_point(run, *options.track)
        text = track_csv(path)
        folder = fresh_folder(options.output_folder)
        write_text(folder / "track.csv", text)
        print(text, end="")
        print(f"a point of the {layer}, seen in {sum(point.is_visible for point in path)} of {len(path)} frames")
        print(f"wrote {folder / 'track.csv'}")
        return

    if {"st_maps", "inverse_st_maps"} & set(options.kinds):
        check_st_maps()
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
    export_layers(run, atlas_folder, atlas, folder, options.kinds)
    if (folder / "layers.png").is_file():
        print(f"open {folder / 'layers.png'}")
    print(f"wrote {folder}")


def layer_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = make_parser(
        "Write the layers as image sequences named after the frames, at their size: the object with opacity, the\n"
        "background without it, mattes, and the mappings as EXR ST maps (Nuke's STMap, RE:Map). Or follow a point.",
        "python export_layers.py --trained_model_folder=results/swan_2026 --output_folder=layers",
    )
    add_trained_run_flags(flags)
    flags.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what to write (default: all)")
    flags.add_argument("--atlas", type=Path, help="folder that export_atlas.py wrote (default: exported along)")
    flags.add_argument(
        "--track",
        type=pixel_of_frame,
        metavar="X,Y,FRAME",
        help="follow this pixel of a frame instead: prints and writes its path, in pixels, with visibility",
    )
    return flags


if __name__ == "__main__":
    run_script(main)
