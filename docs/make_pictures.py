"""Make the README's pictures from a run of the demo: the moving picture, and the drawing of how it works.

python docs/make_pictures.py --run results/demo_<time>    (or: make pictures, after make demo)
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import UserError, run_script

IMAGES = Path(__file__).with_name("images")
MOVIE, DRAWING = IMAGES / "demo.webp", IMAGES / "how_it_works.png"
LARGEST_MOVIE_BYTES = 3_000_000
PANEL_WIDTH_PX = 400


def main(arguments: list[str] | None = None) -> None:
    """Write both pictures into docs/images."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--run", type=Path, required=True, help="folder of a run of `make demo`")
    options = flags.parse_args(arguments)
    if not (options.run / "star").is_dir():
        raise UserError(f"{options.run}: is no run of the demo; run make demo and give the folder that it names")
    write_movie(options.run)
    write_drawing(options.run)
    print(f"wrote {MOVIE} ({MOVIE.stat().st_size / 1e6:.1f} MB) and {DRAWING}")


def write_movie(run: Path) -> None:
    """Write the clip, the star on the cat and the stripes on the background, side by side, as an animated WebP."""
    import imageio.v3 as iio
    import numpy as np

    import media
    from media.contact_sheet import contact_sheet
    from media.decoding import read_video
    from rendering.trained_run import open_run

    clip = open_run(run).clip
    height = round(PANEL_WIDTH_PX * clip.height / clip.width)
    edits = [read_video(run / name / "edited_demo.mp4") for name in ("star", "stripes")]
    frames = []
    for t, (star, stripes) in enumerate(zip(*edits, strict=True)):
        captions = ("the clip", "a star, painted on one frame", "stripes, painted on an atlas")
        panels = dict(zip(captions, (clip.frame(t), star, stripes), strict=True))
        resized = {caption: media.resize(panel, PANEL_WIDTH_PX, height) for caption, panel in panels.items()}
        frames.append(contact_sheet(resized, height))
    forth_and_back = np.stack(frames + frames[-2:0:-1])  # so that the end meets the beginning
    with media.write_atomically(MOVIE) as temporary:
        iio.imwrite(temporary, forth_and_back, duration=round(1000 / clip.fps), loop=0, quality=55, method=4)
    if MOVIE.stat().st_size > LARGEST_MOVIE_BYTES:
        raise UserError(f"{MOVIE}: is larger than {LARGEST_MOVIE_BYTES / 1e6:g} MB; lower PANEL_WIDTH_PX")


def write_drawing(run: Path) -> None:
    """Write the steps from frames to an edit as one picture, with pictures of the run."""
    from matplotlib.figure import Figure

    from evaluation.plots import save_figure

    figure = Figure(figsize=(13, 4.6))
    for (caption, picture), box in zip(drawing_panels(run).items(), BOXES, strict=True):
        axes = figure.add_axes(box)
        axes.imshow(picture)
        axes.set_title(caption, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    for start, end in ARROWS:
        figure.add_artist(arrow(start, end))
    save_figure(figure, DRAWING)


BOXES = (  # left, bottom, width, height of each panel, shares of the figure
    (0.01, 0.30, 0.17, 0.40),
    (0.23, 0.54, 0.17, 0.36),
    (0.23, 0.06, 0.17, 0.36),
    (0.45, 0.30, 0.17, 0.40),
    (0.67, 0.54, 0.12, 0.36),
    (0.67, 0.06, 0.12, 0.36),
    (0.82, 0.30, 0.17, 0.40),
)
ARROWS = (  # from (x, y) to (x, y)
    ((0.185, 0.55), (0.225, 0.68)),
    ((0.185, 0.45), (0.225, 0.28)),
    ((0.405, 0.68), (0.445, 0.55)),
    ((0.405, 0.28), (0.445, 0.45)),
    ((0.625, 0.55), (0.665, 0.68)),
    ((0.625, 0.45), (0.665, 0.28)),
    ((0.795, 0.68), (0.825, 0.55)),
    ((0.795, 0.28), (0.825, 0.45)),
)


def arrow(start: tuple[float, float], end: tuple[float, float]):
    """An arrow between two points of a figure, in shares of it."""
    from matplotlib.patches import FancyArrowPatch

    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, color="0.3", lw=1.6)


def drawing_panels(run: Path) -> dict:
    """The pictures of the drawing under their captions."""
    import cv2
    import numpy as np

    import media
    from evaluation.preview import crop_to_visible
    from grids.model import GridModel
    from media.decoding import read_video
    from media.flows import FORWARD
    from rendering.trained_run import open_run

    opened = open_run(run)
    clip, t = opened.clip, len(opened.clip) // 2
    frame = clip.frame(t)
    mask = media.read_mask(clip.object_masks[0][t])
    masked = np.where(mask[..., None] > 127, frame, frame // 3)
    flow = clip.flow(t, FORWARD)
    angle, length = np.arctan2(flow[..., 1], flow[..., 0]), np.linalg.norm(flow, axis=-1)
    hsv = np.dstack((angle / np.pi * 90 + 90, np.full_like(angle, 255), np.clip(length / length.max(), 0, 1) * 255))
    if not isinstance(opened.model, GridModel):
        raise UserError(f"{run}: holds networks; the drawing needs the grids that make demo trains")
    transforms = opened.model.transforms[opened.model.layers.background.index].cpu().numpy()
    aligned = [
        cv2.warpPerspective(
            clip.frame(each), np.linalg.inv(transforms[t]) @ transforms[each], clip.frame(t).shape[1::-1]
        )
        for each in (t - 4, t, t + 4)
    ]
    atlases = [media.read_rgb(run / "evaluation" / f"texture_orig{number}.png") for number in (1, 2)]
    edited = list(read_video(run / "star" / "edited_demo.mp4"))[t]
    return {
        "1. frames": frame,
        "2. rough masks": masked,
        "2. optical flow": cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB),
        "3. alignment, here of the background": np.mean(aligned, axis=0).astype(np.uint8),
        "4. foreground atlas": crop_to_visible(atlases[0]),
        "4. background atlas": crop_to_visible(atlases[1]),
        "5. an edit": edited,
    }


if __name__ == "__main__":
    run_script(main)
