"""Command line: render a scene into a data folder."""

from pathlib import Path

from command_line import UserError, make_parser, run_script


def main(arguments: list[str] | None = None) -> None:
    """Write the frames, the rough masks and the ground truth of one scene."""
    flags = make_parser(
        "Draw a clip with exact truth from photographs that scikit-image ships.", "python -m scenes demo"
    )
    flags.add_argument("name", help="which scene; an unknown name lists them all")
    flags.add_argument("--data_folder", type=Path, default=Path("data"), help="where to write (default: data)")
    flags.add_argument("--paint", type=Path, metavar="FOLDER", help="also write the demo's two edits there")
    flags.add_argument("--fps", type=float, default=12.0, help="frames per second to note beside the frames")
    options = flags.parse_args(arguments)

    from scenes.catalogue import SCENES
    from scenes.files import write_scene
    from scenes.paint import write_paint

    if options.name not in SCENES:
        raise UserError(f"no scene {options.name!r}; there are: {', '.join(sorted(SCENES))}")
    scene = SCENES[options.name]()
    print(f"wrote {write_scene(scene, options.data_folder, options.fps)}")
    if options.paint:
        print(f"wrote {write_paint(scene, options.paint)}")


if __name__ == "__main__":
    run_script(main)
