"""How far paint on a moving part strays from it, if it is on the atlas and if it is on a look.

python benchmarks/looks.py RUN_FOLDER     a run of the exact scene `walk`, trained with one object

Marks are put on random pixels of the legs, which are parts of the object, in the frame of each look. Their places in
all other frames are compared with the truth, wherever the scene shows the marked point. Paint on the atlas shows in all
frames, paint on a look around its frame.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray

from command_line import UserError, run_script
from scenes.catalogue import SCENES
from scenes.scene import Scene

if TYPE_CHECKING:
    from rendering.frame_store import FrameStore

Floats = NDArray[np.floating]

MARKS = 40  # Marks in the frame of each look.
NEAR_PX = 2.0  # A mark that is not farther from the truth counts as right.
STEP_PX = 1.0  # Largest distance of a mark from the pixel with the nearest uv, along each axis.


def main(arguments: list[str] | None = None) -> None:
    """Print one table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("run", type=Path, metavar="RUN_FOLDER", help="folder that train.py wrote")
    flags.add_argument("--look_frames", type=int, default=8, help="frames from look to look (default: 8)")
    options = flags.parse_args(arguments)

    from export.looks import choose_look_frames
    from rendering.frame_store import render_into_store, temporary_frame_store
    from rendering.trained_run import open_run

    run = open_run(options.run)
    name = run.clip.folder.resolve().name
    scene = SCENES[name](run.clip.width, run.clip.height, len(run.clip)) if name in SCENES else None
    if scene is None or scene.objects < 2:
        raise UserError(f"{options.run}: is of the clip {name}, expected a scene whose object has parts, such as walk")
    centers = choose_look_frames(len(run.clip), options.look_frames)
    if not centers:
        raise UserError(f"--look_frames is {options.look_frames}, too many for two looks in {len(run.clip)} frames")
    with temporary_frame_store(options.run) as store:
        for _ in render_into_store(store, run):
            pass
        errors, shown = measure_marks(store, scene, centers)
    print("| paint on | within 2 px | median, px | mean, px | shows in |\n|---|---|---|---|---|")
    for where, chosen in (("the atlas", np.ones(len(errors), bool)), ("a look", shown)):
        values = errors[chosen]
        print(
            f"| {where} | {(values <= NEAR_PX).mean():.3f} | {np.median(values):.2f} | {values.mean():.2f} "
            f"| {chosen.mean():.0%} of the frames with a mark |"
        )


def measure_marks(store: "FrameStore", scene: Scene, centers: list[int]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the distances (N,) of marks from the truth in pixels, and whether paint on the look shows there, (N,).

    centers: frames of the looks.
    """
    from editing.atlas_file import look_weights
    from rendering.inverse import locate_uv

    rng, weights = np.random.default_rng(0), look_weights(centers, scene.frames)
    found: list[tuple[Floats, NDArray[np.bool_]]] = []
    for number, t in enumerate(centers):
        layers = scene.front_layer(scene.grid(), t)
        rows, columns = np.nonzero((layers > 0) & (layers < scene.objects))  # The body is the front layer.
        chosen = rng.choice(len(rows), min(MARKS, len(rows)), replace=False)
        y, x = rows[chosen], columns[chosen]
        uv = store.frame(t).uv[0][y, x]
        marks, parts = np.stack((x, y), axis=1).astype(float), layers[y, x]
        for other in range(scene.frames):
            truth = scene.move_points(marks, parts, t, other)
            is_visible = scene.is_visible(truth[None], parts[None], other)[0]
            if other == t or not is_visible.any():
                continue
            places, _ = locate_uv(uv[is_visible], store.frame(other).uv[0], STEP_PX)
            distances = np.linalg.norm(places - truth[is_visible], axis=1)
            found.append((distances, np.full(len(distances), weights[number, other] > 0)))
    return np.concatenate([each for each, _ in found]), np.concatenate([each for _, each in found])


if __name__ == "__main__":
    run_script(main)
