"""Write the atlases of a trained run as pictures to paint on."""

from command_line import UserError, add_trained_run_flags, make_parser, open_run_arguments, run_script

SMALLEST_PX, LARGEST_PX = 64, 8192


def main(arguments: list[str] | None = None) -> None:
    """Write atlas images, guides, .ora files and atlas.json into a folder."""
    flags = make_parser(
        "Write each layer's atlas as a picture to paint on: cropped to what is used, as fine as the video,\n"
        "transparent where it is never seen; with a guide, an .ora file for Krita and GIMP, and atlas.json, by which\n"
        "only_edit.py puts paint back in its place. Paint in a layer of its own and export that layer alone.",
        "python export_atlas.py --trained_model_folder=results/swan_2026 --output_folder=atlas",
    )
    add_trained_run_flags(flags)
    flags.add_argument("--resolution", default="auto", help="longer side, pixels (default: auto, as the video has it)")
    flags.add_argument("--padding", type=int, default=0, help="pixels by which the seen part is grown (default: 0)")
    flags.add_argument("--bits", type=int, choices=(8, 16), default=8, help="per channel of the atlases (default: 8)")
    options = flags.parse_args(arguments)
    is_number = options.resolution.isdecimal() and SMALLEST_PX <= int(options.resolution) <= LARGEST_PX
    if options.resolution != "auto" and not is_number:
        raise UserError(
            f"--resolution is {options.resolution!r}, expected auto or pixels, {SMALLEST_PX} to {LARGEST_PX}"
        )
    if options.padding < 0:
        raise UserError(f"--padding is {options.padding}, expected pixels from 0 on")

    from export.atlas import export_atlases
    from media import fresh_folder
    from rendering.trained_run import open_run

    run = open_run(**open_run_arguments(options))
    folder = fresh_folder(options.output_folder)
    resolution = None if options.resolution == "auto" else int(options.resolution)
    atlas = export_atlases(run, folder, resolution, options.padding, options.bits)
    print(f"open {folder / 'atlases.png'}; paint over a layer's picture, or in its .ora file, and carry it through:")
    command = (
        f'  python only_edit.py --trained_model_folder="{options.trained_model_folder}" --output_folder=edited '
        f'--atlas="{folder}"'
    )
    for image in atlas.layers:
        is_background = run.model.layers[image.layer].is_background
        flag = "--edit_background_path=" if is_background else f"--edit_object {image.layer + 1}:"
        print(f"{command} {'--edit_foreground_path=' if image.layer == 0 else flag}painted_{image.image}")
    print(f"wrote {folder}")


if __name__ == "__main__":
    run_script(main)
