"""How far the closed-form start drifts from the truth of the exact scenes, before any training.

python benchmarks/alignment.py [--scenes pan turn] [--frames 70]

Points of a layer in the clip's middle frame are carried to every frame that still shows them, by the transforms and
by the truth: chained from frame to frame, refined together over the flow, and refined with frames far apart compared
directly, as training starts from them. Objects that bend have no transform that fits; the displacements that training
learns are for them.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import run_script

ONE_OBJECT = ["pan", "bend", "turn", "fast", "light"]  # scenes with one
SPACING_PX = 8  # of the points


def main() -> None:
    """Print one table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--scenes", nargs="+", choices=ONE_OBJECT, default=ONE_OBJECT)
    flags.add_argument("--size", nargs=2, type=int, default=[768, 432], help="width and height of the scenes")
    flags.add_argument("--frames", type=int, default=70)
    flags.add_argument("--output", type=Path, default=Path("benchmarks_out"), help="where the scenes are kept")
    options = flags.parse_args()
    print("| scene | layer | chained, px: mean | largest | over the flow: mean | largest | start: mean | largest |")
    print("|---" * 8 + "|")
    for name in options.scenes:
        for scene, layer, *errors in drifts(name, tuple(options.size), options.frames, options.output / "data"):
            print(f"| {scene} | {layer} | " + " | ".join(f"{error:.2f}" for error in errors) + " |", flush=True)


def drifts(name: str, size: tuple[int, int], frames: int, data: Path) -> Iterator[tuple]:
    """(scene, layer, mean and largest distance chained, the same over the flow, and at the start), of every layer."""
    import torch

    from alignment.layers import align_layers, layer_pixels, refine_long_range
    from alignment.tracks import sample_point_pairs
    from alignment.transforms import chain_motion, chain_transforms
    from benchmarks.data import prepare_scene
    from config import Config
    from media.clip import open_clip
    from scenes.catalogue import SCENES
    from unwrap_utils import load_video

    scene, folder = SCENES[name](*size, frames), prepare_scene(name, list(size), frames, data)
    config = Config(data_folder=str(folder), resx=None, resy=None, maximum_number_of_frames=frames)
    video = load_video(open_clip(folder, config), torch.device("cpu"))
    refined = align_layers(video)
    start = refine_long_range(video, refined)
    for layer, (member, kind) in enumerate(layer_pixels(video)):
        simple = chain_transforms(sample_point_pairs(video, member), frames, frames // 2, chain_motion(kind))
        errors = (errors_px(scene, layer, each) for each in (simple, refined[layer], start[layer]))
        yield name, ("object", "background")[layer], *chain.from_iterable(errors)


def errors_px(scene, layer: int, transforms) -> tuple[float, float]:
    """Mean and largest distance over all frames, pixels; transforms (T, 3, 3) of a layer of the scene."""
    import numpy as np

    from alignment.transforms import transform_points

    middle = len(transforms) // 2
    shown = scene.front_layer(scene.grid(), middle) == layer
    points = scene.grid()[::SPACING_PX, ::SPACING_PX][shown[::SPACING_PX, ::SPACING_PX]]
    layers, errors = np.full(len(points), layer), []
    for t, matrix in enumerate(transforms):
        expected = scene.move_points(points, layers, middle, t)
        seen = scene.is_visible(expected[None], layers[None], t)[0]
        found = transform_points(np.linalg.inv(matrix) @ transforms[middle], points)
        errors.append(np.linalg.norm(found - expected, axis=1)[seen])
    together = np.concatenate(errors)
    return float(together.mean()), float(together.max())


if __name__ == "__main__":
    run_script(main)
