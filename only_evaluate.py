"""Evaluate a trained run: atlases, videos, figures and a page that shows them."""

from command_line import add_trained_run_flags, parser, run_script, trained_run_options


def main(arguments: list[str] | None = None) -> None:
    """Render a run into a folder."""
    flags = parser(
        "Render a trained run: atlas images, videos that show what was learned, metrics.json, index.html.\n"
        "Works with checkpoints of this project and with published ones.",
        "python only_evaluate.py --trained_model_folder=results/swan_2026 --video_name=swan --data_folder=data "
        "--output_folder=out",
    )
    add_trained_run_flags(flags)
    options = flags.parse_args(arguments)

    from evaluate import evaluate
    from media import fresh_folder
    from rendering import open_run

    run = open_run(*trained_run_options(options))
    folder = fresh_folder(options.output_folder)
    found = evaluate(run.model, run.clip, folder, run.full_range, opacity_images=True, px_per_uv=run.px_per_uv)
    print(f"mean PSNR {found.metrics['psnr']:.2f} dB over {len(run.clip)} frames")
    print(f"wrote {folder}")


if __name__ == "__main__":
    run_script(main)
