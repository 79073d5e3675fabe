"""Evaluate a trained run: atlases, videos, metrics, and a page that shows them."""

from command_line import add_trained_run_flags, make_parser, open_run_arguments, run_script


def main(arguments: list[str] | None = None) -> None:
    """Evaluate a run and write the outputs into a folder.

    arguments: of the command line; None takes those of the process. Raises UserError for wrong input.
    """
    flags = make_parser(
        "Render a trained run: atlas images, videos that show what was learned, metrics.json, index.html.\n"
        "Works with checkpoints of this project and with published ones.",
        "python only_evaluate.py --trained_model_folder=results/swan_2026 --video_name=swan --data_folder=data "
        "--output_folder=out",
    )
    add_trained_run_flags(flags)
    options = flags.parse_args(arguments)

    from evaluate import evaluate
    from media import fresh_folder
    from rendering.trained_run import open_run

    run = open_run(**open_run_arguments(options))
    folder = fresh_folder(options.output_folder)
    evaluation = evaluate(run, folder, opacity_images=True)
    print(f"mean PSNR {evaluation.metrics['psnr']:.2f} dB over {len(run.clip)} frames")
    print(f"wrote {folder}")


if __name__ == "__main__":
    run_script(main)
