"""Open a run, read where a frame's pixels lie in the atlas, follow a point, and paint: python docs/example.py RUN."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import UserError, run_script
from editing.render_edits import sample_edit_layers
from editing.splatting import splat_frame
from export.track import track_point
from media import to_8_bit, write_png
from rendering.blending import apply_edits
from rendering.frames import render_frame
from rendering.trained_run import open_run


def main() -> None:
    """Print and paint with the run that the command line names."""
    if len(sys.argv) != 2:
        raise UserError("expected one argument: python docs/example.py RUN_FOLDER")
    run = open_run(Path(sys.argv[1]))
    first = render_frame(run.model, run.clip, 0, run.full_range)
    last = render_frame(run.model, run.clip, len(run.clip) - 1, run.full_range)
    height, width = first.alpha.shape[1:]
    x, y = np.argwhere(first.alpha[0] > 0.9).mean(0).astype(int)[::-1].tolist()  # the middle of the object
    print(f"pixel ({x}, {y}) of frame 0: opacity {first.alpha[0, y, x]:.2f}, uv in the foreground {first.uv[0, y, x]}")

    scale = np.array(run.clip.native_size) / (width, height)  # the frames may be larger than the working size
    native_x, native_y = (np.array((x, y)) + 0.5) * scale - 0.5
    layer, path = track_point(run, native_x, native_y, 0)
    print(f"it shows the {layer}, and in the last frame it lies at ({path[-1].x:.1f}, {path[-1].y:.1f})")

    paint = np.zeros((height, width, 4), np.float32)  # RGBA, colour multiplied by opacity
    paint[y - 10 : y + 10, x - 10 : x + 10] = (1, 0.2, 0.2, 1)  # a red square, opaque
    edits = splat_frame(run.model, first, paint, layers=[layer.index for layer in run.model.layers])
    source = run.clip.frame(last.t).astype(np.float32) / 255
    edited = apply_edits(source, sample_edit_layers(run, last, edits), last.light)
    write_png(Path("example.png"), to_8_bit(edited))
    print("wrote example.png: the square, painted on frame 0, in the last frame")


if __name__ == "__main__":
    run_script(main)
