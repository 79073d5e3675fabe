"""Measure the accuracy of the flow that needs no weights on the exact scenes, and the speed of the flow script.

python benchmarks/flow.py                       end-point error (EPE) of DIS on every exact scene
python benchmarks/flow.py --frames_folder F     seconds that preprocess_optical_flow.py takes for a folder of frames
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import run_script

SCENE_FRAMES = 50


def main() -> None:
    """Print a table of the errors, or the seconds for a folder of frames."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--size", nargs=2, type=int, default=[768, 432], help="width and height of the scenes")
    flags.add_argument("--pairs", type=int, default=8, help="pairs of neighbouring frames per scene")
    flags.add_argument("--frames_folder", type=Path, help="measure the seconds for this folder of frames instead")
    options = flags.parse_args()
    if options.frames_folder:
        time_flow_script(options.frames_folder)
    else:
        print_flow_errors(tuple(options.size), options.pairs)


def print_flow_errors(size: tuple[int, int], pairs: int) -> None:
    """Print a table with the mean end-point error of each scene over the pixels that both frames show.

    The table also has the error of the valid flow, which passes the forward-backward check, and the fraction of it.
    size: (width, height) of the scenes. pairs: pairs of neighbouring frames per scene.
    """
    import numpy as np

    from alignment.dis_flow import DisFlow
    from scenes.catalogue import SCENES
    from unwrap_utils import consistent_pixels

    print(
        "| scene | EPE, px | of valid flow | valid | motion, px | ms per pair, both ways |\n|---|---|---|---|---|---|"
    )
    method = DisFlow()
    for name, make_scene in SCENES.items():
        scene, rows = make_scene(*size, SCENE_FRAMES), []
        for t in np.linspace(0, SCENE_FRAMES - 2, pairs).astype(int).tolist():
            true_flow, visible = scene.flow(t, t + 1)
            first, second = scene.frame(t).rgb, scene.frame(t + 1).rgb
            start_time = time.perf_counter()
            flow, back_flow = method(first, second)
            seconds = time.perf_counter() - start_time
            error, valid = np.linalg.norm(flow - true_flow, axis=-1), consistent_pixels(flow, back_flow)
            known = visible & np.isfinite(error)
            motion = np.linalg.norm(true_flow, axis=-1)[known].mean()
            rows.append((error[known].mean(), error[known & valid].mean(), valid.mean(), motion, 1000 * seconds))
        print("| {} | {:.3f} | {:.3f} | {:.3f} | {:.2f} | {:.0f} |".format(name, *np.mean(rows, axis=0)))


def time_flow_script(folder: Path) -> None:
    """Print the seconds that the flow script takes, and the size of its files, for both file formats.

    folder: of frames; nothing is written to it.
    """
    for file_format in ("npz", "npy"):
        with tempfile.TemporaryDirectory() as temporary:
            clip = Path(temporary) / "clip"
            clip.symlink_to(folder.resolve(), target_is_directory=True)
            command = [sys.executable, str(ROOT / "preprocess_optical_flow.py"), "--vid-path", str(clip)]
            start_time = time.perf_counter()
            subprocess.run(
                [*command, "--method", "dis", "--max_long_edge", "100000", "--format", file_format],
                check=True,
                capture_output=True,
            )
            seconds = time.perf_counter() - start_time
            files = list(clip.with_name("clip_flow").iterdir())
            size_mb = sum(path.stat().st_size for path in files) / 1e6
            print(f"{file_format}: {len(files)} files in {seconds:.1f} s, {size_mb:.1f} MB")


if __name__ == "__main__":
    run_script(main)
