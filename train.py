"""Train layered neural atlases on one clip."""

import argparse
from pathlib import Path

from command_line import UserError, add_device_flag, check_seconds, make_parser, run_script


def main(arguments: list[str] | None = None) -> None:
    """Train a new run from a config, or continue a run.

    arguments: of the command line; None takes those of the process. Raises UserError for wrong input and Stopped after
    a signal.
    """
    options = make_training_parser().parse_args(arguments)
    check_flags(options)

    from config import load_config, parse_setting
    from parallel.processes import join_group
    from training.runs import Corrections, resume_run, scale_time_budget, start_run

    device = join_group(options.device)
    if options.resume:
        corrections = Corrections(options.strokes, options.pins, dict(options.rigidity))
        trainer = resume_run(options.resume, options.time_budget, device, corrections)
    else:
        changes = dict(map(parse_setting, options.set))
        changes |= {"time_budget_s": options.time_budget} if options.time_budget else {}
        changes |= {"light": False} if options.no_light else {}
        changes |= {"strokes_folder": str(options.strokes)} if options.strokes else {}
        config = load_config(options.config, changes)
        if options.time_per_100_frames:
            config = scale_time_budget(config, options.time_per_100_frames)
        trainer = start_run(config, device)
    trainer.run(with_evaluation=not options.no_evaluation)
    if options.no_evaluation:
        print(f"finished after iteration {trainer.iteration}; wrote {trainer.checkpoint_path}")
        return
    print(f"finished; open {trainer.folder / 'preview.png'} and {trainer.evaluation_folder / 'index.html'}")


def make_training_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = make_parser(
        "Learn the atlases of one clip: two flat images, a mapping from every pixel into them, and an opacity.\n"
        "The config names the clip's folder and all settings. Results are written to a new folder: preview.png, the\n"
        "evaluations, and a checkpoint that only_evaluate.py and only_edit.py read. Ctrl-C saves and stops the run;\n"
        "--resume continues it.",
        "python train.py config/config.json --set data_folder=data/swan",
    )
    flags.add_argument("config", nargs="?", type=Path, help="settings as JSON, see config/config.json")
    flags.add_argument("--resume", type=Path, metavar="RUN_FOLDER", help="continue this run where it was stopped")
    flags.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting of the config for this run, such as resx=384; give the flag several times for more",
    )
    flags.add_argument(
        "--time_budget", type=float, metavar="SECONDS", help="stop after so many seconds of loading and training"
    )
    flags.add_argument(
        "--time_per_100_frames", type=float, metavar="SECONDS", help="a time budget that grows with the clip"
    )
    flags.add_argument(
        "--no_light", "--no_residual", action="store_true", help="representation grid: do not learn a factor of light"
    )
    flags.add_argument(
        "--strokes",
        type=Path,
        metavar="FOLDER",
        help="PNGs named like their frames: red says object 1, black background, transparent nothing; with --resume "
        "they correct a finished run in --time_budget more seconds (20)",
    )
    flags.add_argument(
        "--pins",
        type=Path,
        metavar="FILE",
        help="with --resume: a JSON of places in several frames that are one place, as the editor in the browser "
        "writes it; the mapping is mended, and trained for --time_budget more seconds (20)",
    )
    flags.add_argument(
        "--rigidity",
        type=parse_dial,
        action="append",
        default=[],
        metavar="N:FACTOR",
        help="with --resume: multiply the rigidity of layer N (1 is the front object, the last one the background); "
        "more is stiffer",
    )
    flags.add_argument("--no_evaluation", action="store_true", help="write the checkpoint at the end, and nothing else")
    add_device_flag(flags)
    return flags


def parse_dial(text: str) -> tuple[int, float]:
    """Return the index of the layer and the factor of a flag's N:FACTOR."""
    number, _, factor = text.partition(":")
    try:
        layer, value = int(number) - 1, float(factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected N:FACTOR such as 1:0.5") from None
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a factor of at least 0")
    return layer, value


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other or have no effect."""
    if (options.config is None) == (options.resume is None):
        raise UserError("give either a config file or --resume RUN_FOLDER; see python train.py --help")
    if options.resume and options.no_light:
        raise UserError("--no_light works for a new run only; leave it out to continue a run with its own settings")
    if options.resume and options.set:
        raise UserError(
            "--set works for a new run only; to change the settings of a run that is continued, edit "
            f"{options.resume / 'config.json'}"
        )
    for name in ("pins", "rigidity"):
        if getattr(options, name) and not options.resume:
            raise UserError(f"--{name} corrects a finished run; add --resume RUN_FOLDER")
    check_seconds(options, "time_budget", "time_per_100_frames")
    if options.time_per_100_frames and (options.time_budget or options.resume):
        raise UserError("--time_per_100_frames is for new runs, instead of --time_budget; give one of them")


if __name__ == "__main__":
    run_script(main)
