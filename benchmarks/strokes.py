"""Measure what three strokes are worth: correct finished runs by strokes that a simulated user paints, for 20 s.

python benchmarks/strokes.py RUN_FOLDER [RUN_FOLDER ...]

The clip of a run needs true masks (NAME_gt). The simulated user looks at three frames, evenly spaced, and paints one
stroke into each: along the middle of the largest region in which the run's opacity is wrong. The run itself is not
changed; a copy of its folder is corrected.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import UserError, run_script

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from media.clip import Clip
    from training.loop import Trainer

    Flags = NDArray[np.bool_]

STROKES = 3  # Frames that are painted on.
STROKE_WIDTH = 1 / 100  # Width of a stroke, as a share of the long edge.
KEPT_DEPTH = 0.5  # Share of the largest distance to the region's outline from which on a pixel belongs to its middle.


def main() -> None:
    """Print J and F before and after the strokes of each run."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", type=Path, help="folders that train.py wrote")
    flags.add_argument("--budget", type=float, default=20.0, help="seconds of further training")
    options = flags.parse_args()
    print("| clip | J before | J after | F before | F after | contradicted pixels |")
    print("|---" * 6 + "|")
    for run in options.runs:
        values = measure_strokes(run, options.budget)
        print(f"| {run.name} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


def measure_strokes(run: Path, budget_s: float) -> list[float]:
    """Return J before and after, F before and after, and the share of the strokes' pixels that are contradicted."""
    import numpy as np

    from masks.strokes import object_strokes, read_strokes
    from training.runs import Corrections, resume_run

    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; give a folder that train.py wrote")
    with tempfile.TemporaryDirectory() as folder:
        copy, strokes = Path(folder) / run.name, Path(folder) / "strokes"
        shutil.copytree(run, copy)
        before = resume_run(copy)
        if before.clip.true_masks is None:
            raise UserError(
                f"{before.clip.folder}: has no true masks ({before.clip.name}_gt), which the benchmark needs"
            )
        opacity, truth = read_opacity(before), read_truth(before.clip)
        paint_strokes(strokes, before.clip, opacity, truth)
        after = resume_run(copy, budget_s, corrections=Corrections(strokes))
        after.train_without_evaluating()
        corrected = read_opacity(after)
        labels = read_strokes(strokes, after.clip)
    wrong, total = 0, 0
    for t, painted in labels.items():
        says = object_strokes(painted, 1)
        wrong += int(((says > 0) & ~corrected[t]).sum() + ((says < 0) & corrected[t]).sum())
        total += int(np.count_nonzero(says))
    quality = [mean_quality(masks, truth) for masks in (opacity, corrected)]
    return [quality[0][0], quality[1][0], quality[0][1], quality[1][1], wrong / max(total, 1)]


def read_opacity(trainer: "Trainer") -> "Flags":
    """Return which pixels a run shows as the object, (T, H, W)."""
    import numpy as np

    from rendering.frames import VISIBLE, render_frames

    frames = render_frames(trainer.model, trainer.clip, True, with_colors=False)
    return np.stack([frame.coverage > VISIBLE for frame in frames])


def read_truth(clip: "Clip") -> "Flags":
    """Return the true masks of a clip, (T, H, W)."""
    import numpy as np

    return np.stack([clip.mask(path) > 127 for path in clip.true_masks or ()])


def mean_quality(masks: "Flags", truth: "Flags") -> tuple[float, float]:
    """Return the mean J and F of masks (T, H, W)."""
    import numpy as np

    from evaluation.mask_metrics import boundary_f, iou

    pairs = list(zip(masks, truth, strict=True))
    return float(np.mean([iou(*pair) for pair in pairs])), float(np.mean([boundary_f(*pair) for pair in pairs]))


def paint_strokes(folder: Path, clip: "Clip", opacity: "Flags", truth: "Flags") -> None:
    """Paint one stroke into each of some frames, along the middle of the largest wrong region."""
    import cv2
    import numpy as np

    import media
    from masks.strokes import BACKGROUND_COLOR, OBJECT_COLORS
    from media.clip import evenly_spaced_indices

    media.make_folder(folder)
    for t in evenly_spaced_indices(len(clip), STROKES):
        wrong = opacity[t] != truth[t]
        depth = cv2.distanceTransform(wrong.astype(np.uint8), cv2.DIST_L2, 5)
        _, parts = cv2.connectedComponents((depth > 1).astype(np.uint8))
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        part = parts == sizes.argmax()
        middle = part & (depth >= KEPT_DEPTH * depth[part].max())
        middle &= depth <= max(STROKE_WIDTH * max(wrong.shape), KEPT_DEPTH * depth[part].max() + 1)
        picture = np.zeros((*wrong.shape, 4), np.uint8)
        picture[middle] = (*(OBJECT_COLORS[0] if truth[t][part].mean() > 0.5 else BACKGROUND_COLOR), 255)
        media.write_png(folder / f"{clip.frame_paths[t].stem}.png", picture)


if __name__ == "__main__":
    run_script(main)
