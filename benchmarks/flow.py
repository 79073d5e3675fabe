"""How good and how fast flow is, without weights and against the exact scenes.

python benchmarks/flow.py                       EPE of DIS on every exact scene
python benchmarks/flow.py --frames_folder F     seconds for the flow of a folder of frames, as the script computes it
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


def main() -> None:
    """Print one table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--size", nargs=2, type=int, default=[768, 432], help="width and height of the scenes")
    flags.add_argument("--pairs", type=int, default=8, help="pairs of neighbouring frames per scene")
    flags.add_argument("--frames_folder", type=Path, help="time the flow of this folder of frames instead")
    options = flags.parse_args()
    if options.frames_folder:
        time_folder(options.frames_folder)
    else:
        print_errors(tuple(options.size), options.pairs)


def print_errors(size: tuple[int, int], pairs: int) -> None:
    """Mean end-point error, and what the forward-backward check keeps of each scene."""
    import numpy as np

    from alignment.dis_flow import DisFlow
    from scenes.catalogue import SCENES
    from unwrap_utils import consistent_flow

    print(
        "| scene | EPE, px | of valid flow | valid | motion, px | ms per pair, both ways |\n|---|---|---|---|---|---|"
    )
    method = DisFlow()
    for name, make in SCENES.items():
        scene, rows = make(*size, 50), []
        for t in np.linspace(0, 48, pairs).astype(int):
            truth, visible = scene.flow(t, t + 1)
            first, second = scene.frame(t).rgb, scene.frame(t + 1).rgb
            started = time.perf_counter()
            there, back = method(first, second)
            took = time.perf_counter() - started
            error, valid = np.linalg.norm(there - truth, axis=-1), consistent_flow(there, back)
            known = visible & np.isfinite(error)
            rows.append(
                (
                    error[known].mean(),
                    error[known & valid].mean(),
                    valid.mean(),
                    np.linalg.norm(truth, axis=-1)[known].mean(),
                    1000 * took,
                )
            )
        print("| {} | {:.3f} | {:.3f} | {:.3f} | {:.2f} | {:.0f} |".format(name, *np.mean(rows, axis=0)))


def time_folder(folder: Path) -> None:
    """The script from start to end, and the size of what it writes in both formats."""
    for kind in ("npz", "npy"):
        with tempfile.TemporaryDirectory() as place:
            clip = Path(place) / "clip"
            clip.symlink_to(folder.resolve(), target_is_directory=True)
            command = [sys.executable, str(ROOT / "preprocess_optical_flow.py"), "--vid-path", str(clip)]
            started = time.perf_counter()
            subprocess.run(
                [*command, "--method", "dis", "--max_long_edge", "100000", "--format", kind],
                check=True,
                capture_output=True,
            )
            took = time.perf_counter() - started
            files = list(clip.with_name("clip_flow").iterdir())
            total = sum(path.stat().st_size for path in files)
            print(f"{kind}: {len(files)} files in {took:.1f} s, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
