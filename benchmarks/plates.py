"""Measure clean plates of runs of exact scenes against the scenes without their objects.

python benchmarks/plates.py RUN_FOLDER [RUN_FOLDER ...]

The runs are of scenes that benchmarks/run.py or python -m scenes drew, under their own names. Printed per run: PSNR in
decibels behind the objects and in what surrounds them, over some frames. Shadows that move with objects belong to the
truth, and do not with --remove_shadow.
"""

import argparse
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from command_line import UserError, run_script

if TYPE_CHECKING:
    from editing.layer_edit import LayerEdit
    from rendering.frames import Floats
    from rendering.trained_run import TrainedRun
    from scenes.scene import Scene

MEASURED_FRAMES = 10  # Frames, evenly spaced.
AROUND = 1 / 16  # Width of what surrounds an object, as a share of the long edge; cast shadows lie there, too.


def main(arguments: list[str] | None = None) -> None:
    """Measure each run, and print one table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders that train.py wrote")
    options = flags.parse_args(arguments)
    print("| scene | behind objects, dB | around them, dB | with --remove_shadow: behind | around |")
    print("|---|---|---|---|---|")
    for folder in options.runs:
        print(measure_run(folder), flush=True)


def measure_run(folder: Path) -> str:
    """Return the row of one run. Raises UserError if its clip is no exact scene."""
    from export.atlas import export_atlases
    from export.layers import open_plate
    from rendering.trained_run import open_run
    from scenes.catalogue import SCENES

    run = open_run(folder, device="cpu")
    name = run.clip.folder.resolve().name
    if name not in SCENES:
        raise UserError(f"{folder}: its clip {name} is no exact scene; there are: {', '.join(sorted(SCENES))}")
    scene = SCENES[name](run.clip.width, run.clip.height, len(run.clip))
    with tempfile.TemporaryDirectory() as folder_of_atlas, redirect_stdout(sys.stderr):
        atlas = export_atlases(run, Path(folder_of_atlas), None, 0, 8)
        plate = open_plate(run, atlas.layer(run.model.layers.background.index), Path(folder_of_atlas))
    values = [value for removes in (False, True) for value in measure_plates(run, scene, plate, removes)]
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"


def measure_plates(run: "TrainedRun", scene: "Scene", plate: "LayerEdit", removes_shadow: bool) -> tuple[float, float]:
    """Return the PSNR of plates behind the objects and around them. plate: the background's atlas as an edit."""
    import cv2

    from export.layers import make_clean_plate
    from media import to_display
    from media.clip import evenly_spaced_indices
    from rendering.frames import render_frame

    errors: tuple[list[Floats], list[Floats]] = ([], [])
    radius = round(AROUND * max(scene.width, scene.height))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    for t in evenly_spaced_indices(len(run.clip), MEASURED_FRAMES):
        frame = render_frame(run.model, run.clip, t, run.full_range, with_colors=False)
        source = to_display(run.clip.native_frame(t)).astype(np.float32)
        picture = make_clean_plate(run, frame, source, plate, removes_shadow).picture
        light = 1.0 if removes_shadow else scene.light_at(scene.grid(), t)[..., None]
        error = np.square(picture - scene.background_frame(t) / 255 * light).mean(-1)
        is_object = scene.frame(t).alpha.max(0) > 0
        is_near = cv2.dilate(is_object.astype(np.uint8), kernel) > 0
        for found, area in zip(errors, (is_object, is_near & ~is_object), strict=True):
            found.append(error[area])
    behind, around = (float(-10 * np.log10(np.concatenate(each).mean())) for each in errors)
    return behind, around


if __name__ == "__main__":
    run_script(main)
