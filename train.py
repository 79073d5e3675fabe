"""Train layered neural atlases on one clip."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import UserError, make_parser, run_script

if TYPE_CHECKING:
    import torch


def main(arguments: list[str] | None = None) -> None:
    """Train a new run from a config, or continue one."""
    options = training_flags().parse_args(arguments)
    check_flags(options)

    from config import load_config, parse_setting
    from training.loop import resume_run, start_run

    device = parse_device(options.device)
    if options.resume:
        trainer = resume_run(options.resume, options.time_budget, device)
    else:
        changes = dict(map(parse_setting, options.set))
        changes |= {"time_budget_s": options.time_budget} if options.time_budget else {}
        changes |= {"light": False} if options.no_light else {}
        trainer = start_run(load_config(options.config, changes), device)
    trainer.run()
    print(
        f"finished; open {trainer.folder / 'preview.png'} and {trainer.folder / f'{trainer.iteration:06d}'}/index.html"
    )


def training_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = make_parser(
        "Learn the atlases of one clip: two flat images, a map from every pixel into them, and an opacity.\n"
        "The config names the clip's folder and everything else; results go to a new folder, with a preview.png, and\n"
        "a checkpoint that only_evaluate.py and only_edit.py read. Ctrl-C saves and stops; --resume goes on.",
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
        "--no_light", "--no_residual", action="store_true", help="representation grid: learn no factor of light"
    )
    flags.add_argument("--device", help="cpu, cuda or cuda:1, for instance (default: the GPU if there is one)")
    return flags


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other, or say nothing."""
    if (options.config is None) == (options.resume is None):
        raise UserError("give either a config file or --resume RUN_FOLDER; see python train.py --help")
    if options.resume and options.no_light:
        raise UserError("--no_light belongs to a new run; a run that began with light goes on with it")
    if options.resume and options.set:
        raise UserError(
            f"--set changes the settings of a new run; edit {options.resume / 'config.json'} to change those of a run "
            "that goes on"
        )
    if options.time_budget is not None and not 0 < options.time_budget < float("inf"):
        raise UserError(f"--time_budget is {options.time_budget}, expected seconds above 0")


def parse_device(name: str | None) -> "torch.device | None":
    """The device of that name; None if none was named. Raises UserError where it is not there."""
    if name is None:
        return None

    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: is not on this machine; use cpu, or leave the flag out") from None


if __name__ == "__main__":
    run_script(main)
