"""Measure the soft opacity at the outline on exact scenes, and the colours of the foreground over another background.

python benchmarks/matting.py                     the scene fast, with motion blur, 60 s
python benchmarks/matting.py --photograph DIR    also the scene fur: DIR has lemur_foreground.png and lemur_alpha.png

Compared are the learned opacity, the solved one, the binary truth, and, if it is installed, pymatting (closed form)
with a trimap whose unknown part is the band around the outline of the learned opacity. Errors are those of
alphamatting.com, inside a band around the true outline, as means over some frames.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import UserError, run_script

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rendering.trained_run import TrainedRun
    from scenes.scene import Scene

    Floats = NDArray[np.floating]

BAND = 1 / 40  # Half width of the band in which errors are measured, as a share of the long edge.
MEASURED_FRAMES = 8  # Frames, evenly spaced.
NEW_COLOR = (0.1, 0.6, 0.2)  # Background, in [0, 1], over which the foreground is composited to look for a halo.
NEVER = 10**9  # Iterations that no run reaches.


def main() -> None:
    """Train each scene and print a table of the errors."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--scenes", nargs="*", default=["fast"], help="exact scenes by name")
    flags.add_argument("--photograph", type=Path, help="folder with lemur_foreground.png and lemur_alpha.png")
    flags.add_argument("--size", nargs=2, type=int, default=[768, 432], help="width and height of the scenes")
    flags.add_argument("--frames", type=int, default=50)
    flags.add_argument("--budget", type=float, default=60.0, help="seconds of loading and training")
    flags.add_argument("--output", type=Path, default=Path("benchmarks_out"), help="folder for scenes and runs")
    options = flags.parse_args()
    print("| scene | opacity | SAD | MSE | gradient | connectivity | composite error |")
    print("|---" * 7 + "|")
    for scene in make_scenes(options):
        run = train_scene(scene, options)
        for kind, errors in measure_scene(run, scene).items():
            print(f"| {scene.name} | {kind} | " + " | ".join(f"{error:.4f}" for error in errors) + " |", flush=True)


def make_scenes(options: argparse.Namespace) -> Iterator["Scene"]:
    """Yield the scenes that the flags ask for. Raises UserError for an unknown scene or a missing photograph."""
    from media import read_mask, read_rgb
    from scenes.catalogue import SCENES, fur

    for name in options.scenes:
        if name not in SCENES:
            raise UserError(f"no scene {name!r}; there are: {', '.join(sorted(SCENES))}")
        yield SCENES[name](*options.size, options.frames)
    if options.photograph:
        color, alpha = (options.photograph / f"lemur_{kind}.png" for kind in ("foreground", "alpha"))
        if missing := [path for path in (color, alpha) if not path.is_file()]:
            raise UserError(f"{missing[0]}: no such file; --photograph takes the folder of the matting photograph")
        width, height = options.size
        yield fur(read_rgb(color), read_mask(alpha) / 255, width, height, options.frames)


def train_scene(scene: "Scene", options: argparse.Namespace) -> "TrainedRun":
    """Draw a scene unless it exists, and train it within the budget."""
    from dataclasses import replace

    from benchmarks.data import MISSING_MASKS, add_flow
    from config import load_config
    from rendering.trained_run import TrainedRun
    from scenes.files import write_scene
    from training.runs import start_run

    folder = options.output / "data" / f"{scene.width}x{scene.height}x{scene.frames}" / scene.name
    if not folder.with_name(f"{scene.name}.json").is_file():
        write_scene(scene, folder.parent, missing=MISSING_MASKS)
    add_flow(folder)
    config = replace(
        load_config(ROOT / "config" / "fast.json"),
        data_folder=str(folder),
        results_folder_name=str(options.output / "matting"),
        resx=scene.width,
        resy=None,
        time_budget_s=options.budget,
        iters_num=NEVER,
        evaluate_every=NEVER,
        checkpoint_every=NEVER,
    )
    trainer = start_run(config)
    trainer.train_without_evaluating()
    trainer.save()
    return TrainedRun(trainer.model.eval(), trainer.clip)


def measure_scene(run: "TrainedRun", scene: "Scene") -> dict[str, list[float]]:
    """Return the mean errors of each kind of opacity: the four of `matting_errors`, and that of a composite."""
    import copy

    import numpy as np

    from evaluation.matting_metrics import matting_errors
    from grids.fields import Lattice
    from grids.matting import render_layer
    from grids.model import GridModel
    from media.clip import evenly_spaced_indices
    from rendering.frames import VISIBLE, render_frame
    from rendering.trained_run import TrainedRun

    model = run.model
    assert isinstance(model, GridModel)  # as config/fast.json says
    learned_model = copy.deepcopy(model)
    learned_model.forget_mattes()
    learned_run = TrainedRun(learned_model, run.clip)
    errors: dict[str, list[list[float]]] = {}
    for t in evenly_spaced_indices(scene.frames, MEASURED_FRAMES):
        truth = 1 - np.prod(1 - scene.frame(t).alpha, axis=0)
        band = outline_band(truth)
        source = run.clip.frame(t).astype(np.float32) / 255
        learned = render_frame(learned_run.model, run.clip, t, True)
        solved = render_frame(run.model, run.clip, t, True)
        lattice = Lattice.of_raster(run.clip.size[:0:-1], run.clip.size[1:])
        background = render_layer(model.at_frames(t), model.layers.background.index, lattice)
        opacities = {"learned": learned.coverage, "solved": solved.coverage, "binary truth": truth > VISIBLE}
        if importlib.util.find_spec("pymatting"):
            opacities["pymatting"] = solve_closed_form(source, learned.coverage)
        for kind, opacity in opacities.items():
            alpha = opacity.astype(np.float32)
            values = list(matting_errors(alpha, truth, band).values())
            values.append(composite_error(source, background, alpha, scene.objects_over(t, np.array(NEW_COLOR)), band))
            errors.setdefault(kind, []).append(values)
    return {kind: np.mean(values, axis=0).tolist() for kind, values in errors.items()}


def outline_band(opacity: "Floats") -> "NDArray[np.bool_]":
    """Return the pixels (H, W) near the outline of an opacity (H, W)."""
    import numpy as np

    from masks.quality import signed_distance

    return np.abs(signed_distance(opacity > 0.5)) < BAND * max(opacity.shape)


def solve_closed_form(source: "Floats", opacity: "Floats") -> "Floats":
    """Return pymatting's opacity (H, W); unknown is the band around the outline of an opacity."""
    import numpy as np
    from pymatting import estimate_alpha_cf

    trimap = np.where(outline_band(opacity), 0.5, opacity > 0.5).astype(np.float64)
    return estimate_alpha_cf(source.astype(np.float64), trimap).astype(np.float32)


def composite_error(
    source: "Floats", background: "Floats", alpha: "Floats", truth: "Floats", band: "NDArray[np.bool_]"
) -> float:
    """Return the root mean squared error of the foreground over a new background, in a band (H, W).

    source, background (H, W, 3): the frame, and the background behind the objects. truth (H, W, 3): the true composite.
    """
    import numpy as np

    from export.layers import foreground_color

    opacity = alpha[..., None]
    composite = foreground_color(source, background, alpha) * opacity + np.array(NEW_COLOR) * (1 - opacity)
    return float(np.sqrt(np.square(composite - truth)[band].mean()))


if __name__ == "__main__":
    run_script(main)
