"""Train layered neural atlases on one clip."""

from dataclasses import replace
from pathlib import Path

from command_line import UserError, make_parser, run_script


def main(arguments: list[str] | None = None) -> None:
    """Train a new run from a config, or continue one."""
    flags = make_parser(
        "Learn the atlases of one clip: two flat images, a map from every pixel into them, and an opacity.\n"
        "The config names the clip's folder and everything else; results go to a new folder, with a preview.png, and\n"
        "a checkpoint that only_evaluate.py and only_edit.py read. Ctrl-C saves and stops; --resume goes on.",
        "python train.py config/config.json",
    )
    flags.add_argument("config", nargs="?", type=Path, help="settings as JSON, see config/config.json")
    flags.add_argument("--resume", type=Path, metavar="RUN_FOLDER", help="continue this run where it was stopped")
    flags.add_argument(
        "--time_budget", type=float, metavar="SECONDS", help="stop after so many seconds of loading and training"
    )
    flags.add_argument("--no_residual", action="store_true", help="representation grid: learn no factor of light")
    options = flags.parse_args(arguments)
    if (options.config is None) == (options.resume is None):
        raise UserError("give either a config file or --resume RUN_FOLDER; see python train.py --help")
    if options.resume and options.no_residual:
        raise UserError("--no_residual belongs to a new run; a run that began with light goes on with it")
    if options.time_budget is not None and not 0 < options.time_budget < float("inf"):
        raise UserError(f"--time_budget is {options.time_budget}, expected seconds above 0")

    from config import load_config
    from training.loop import resume_run, start_run

    if options.resume:
        trainer = resume_run(options.resume, options.time_budget)
    else:
        changes = {"time_budget_s": options.time_budget} if options.time_budget else {}
        changes |= {"residual": False} if options.no_residual else {}
        trainer = start_run(replace(load_config(options.config), **changes))
    trainer.run()
    print(
        f"finished; open {trainer.folder / 'preview.png'} and {trainer.folder / f'{trainer.iteration:06d}'}/index.html"
    )


if __name__ == "__main__":
    run_script(main)
