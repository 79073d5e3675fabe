"""Measure how far the aligned start is from the truth of the exact scenes, before any training.

python benchmarks/alignment.py [--scenes pan turn] [--frames 70]

Points of a layer in the middle frame of the clip are moved to every frame that still shows them, by the fitted
transforms and by the truth. There are three kinds of transforms: chained from frame to frame; refined over all frames
with the flow; and refined with direct matches of distant frames, too, as at the start of training. No transform fits
objects that bend; training learns displacements for them.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import run_script

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scenes.scene import Scene

    Floats = NDArray[np.floating]

ONE_OBJECT_SCENES = ["pan", "bend", "turn", "fast", "light"]
SPACING_PX = 8  # Pixels between two points, along each axis.


def main() -> None:
    """Print a table of the errors."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--scenes", nargs="+", choices=ONE_OBJECT_SCENES, default=ONE_OBJECT_SCENES)
    flags.add_argument("--size", nargs=2, type=int, default=[768, 432], help="width and height of the scenes")
    flags.add_argument("--frames", type=int, default=70)
    flags.add_argument("--output", type=Path, default=Path("benchmarks_out"), help="folder for the scenes")
    options = flags.parse_args()
    print("| scene | layer | chained, px: mean | largest | over the flow: mean | largest | start: mean | largest |")
    print("|---" * 8 + "|")
    for name in options.scenes:
        for layer, *errors in alignment_errors(name, tuple(options.size), options.frames, options.output / "data"):
            print(f"| {name} | {layer} | " + " | ".join(f"{error:.2f}" for error in errors) + " |", flush=True)


def alignment_errors(name: str, size: tuple[int, int], frames: int, data: Path) -> Iterator[tuple]:
    """Yield the errors of each layer of a scene: the layer's name, then mean and largest distance in pixels.

    There is one pair of distances for the chained transforms, one for those refined over the flow, and one for those
    of the start. size: (width, height) of the scene. data: folder for the scene's files.
    """
    import torch

    from alignment.layers import align_layers, layer_pixels, match_layers, refine_long_range
    from alignment.shutter import measure_shutter
    from alignment.tracks import sample_point_pairs
    from alignment.transforms import chain_kind, chain_transforms
    from benchmarks.data import prepare_scene
    from config import Config
    from media.clip import open_clip
    from scenes.catalogue import SCENES
    from unwrap_utils import load_video

    scene, folder = SCENES[name](*size, frames), prepare_scene(name, size, frames, data)
    config = Config(data_folder=str(folder), resx=None, resy=None, maximum_number_of_frames=frames)
    video = load_video(open_clip(folder, config), torch.device("cpu"))
    refined = align_layers(video)
    video = measure_shutter(video, refined)
    start = refine_long_range(video, refined, match_layers(video, refined))
    for layer, (mask, kind) in enumerate(layer_pixels(video)):
        chained = chain_transforms(sample_point_pairs(video, mask), frames, frames // 2, chain_kind(kind))
        all_transforms = (chained, refined[layer], start[layer])
        errors = (transform_errors_px(scene, layer, transforms) for transforms in all_transforms)
        yield ("object", "background")[layer], *chain.from_iterable(errors)


def transform_errors_px(scene: "Scene", layer: int, transforms: "Floats") -> tuple[float, float]:
    """Return the mean and the largest distance of transformed points from the truth over all frames, in pixels.

    transforms: (T, 3, 3) from pixels of each frame to pixels of the layer's reference frame.
    """
    import numpy as np

    from alignment.transforms import transform_points

    middle = len(transforms) // 2
    is_layer = scene.front_layer(scene.grid(), middle) == layer
    points = scene.grid()[::SPACING_PX, ::SPACING_PX][is_layer[::SPACING_PX, ::SPACING_PX]]
    layers = np.full(len(points), layer, np.uint8)
    errors: list[Floats] = []
    for t, matrix in enumerate(transforms):
        expected = scene.move_points(points, layers, middle, t)
        visible = scene.is_visible(expected[None], layers[None], t)[0]
        actual = transform_points(np.linalg.inv(matrix) @ transforms[middle], points)
        errors.append(np.linalg.norm(actual - expected, axis=1)[visible])
    distances = np.concatenate(errors)
    return float(distances.mean()), float(distances.max())


if __name__ == "__main__":
    run_script(main)
