"""Pictures of looks: how an atlas looks around some frames, to paint on what one picture cannot show.

They are sampled from the frames near each look, so any run can have them, whether its model has looks or not."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import media
from editing.atlas_file import LayerImage
from export.atlas_sampling import sample_atlas
from export.paint_files import join_opacity, show_on_white, write_paint_files
from grids.looks import space_looks
from media import Pixels
from media.clip import evenly_spaced_indices
from media.contact_sheet import contact_rows
from rendering.frame_store import FrameStore
from rendering.frames import Floats
from rendering.trained_run import TrainedRun

MOST_LOOKS = 100  # Most looks of a layer; each is a picture and a layered file.
SAMPLED_FRAMES = 5  # Most frames from which a look is sampled, spread over half of the frames to the looks beside it.
SHEET_PX, SHEET_COLUMNS = 320, 4  # Height of a picture in NAME_looks.png, in pixels, and pictures beside each other.


def choose_look_frames(frames: int, look_frames: int) -> list[int]:
    """Return the frames around which a clip of T frames has looks, about look_frames apart; none if it is too short."""
    return sorted({round(center) for center in space_looks(frames, look_frames)})


def sample_looks(
    run: TrainedRun, store: FrameStore, image: LayerImage, learned: Floats, look_frames: int
) -> Iterator[tuple[LayerImage, Floats, Floats]]:
    """Yield for each look of a layer its image, its colours (h, w, 3) in [0, 1] and where it is known (h, w), 1 or 0.

    image, learned (h, w, 3): of the layer's atlas, which has the same size and place. look_frames: frames from look to
    look. A look that no frame near it shows is left out.
    """
    view = image.view(run.model, (image.width, image.height), None)
    for t in choose_look_frames(store.count, look_frames):
        first, last = max(0, t - look_frames // 4), min(store.count - 1, t + look_frames // 4)
        frames = [first + index for index in evenly_spaced_indices(last - first + 1, SAMPLED_FRAMES)]
        sampled = sample_atlas(run, store, image, view, frames, learned)
        if sampled.is_shown.any():
            name = f"{Path(image.image).stem}_look_{t:03d}.png"
            yield replace(image, image=name, look=t), sampled.color, sampled.is_shown.astype(np.float32)


def write_looks(
    folder: Path,
    looks: Iterable[tuple[LayerImage, Floats, Floats]],
    guide: Pixels,
    padding_px: int,
    bits: int,
    formats: Sequence[str],
) -> list[LayerImage]:
    """Write the files of a layer's looks, and NAME_looks.png with all of them, and return their images.

    looks: see `sample_looks`. The other arguments are those of `export.paint_files.write_paint_files`.
    """
    images, sheet = [], {}
    for image, sampled, known in looks:
        rgba = join_opacity(sampled, known, padding_px)
        write_paint_files(folder, Path(image.image).stem, rgba, guide, bits, formats)
        images.append(image)
        width = max(1, round(image.width * SHEET_PX / image.height))
        sheet[f"frame {image.look}"] = media.resize(show_on_white(sampled, known), width, SHEET_PX)
    if images:
        layer_name = images[0].image.rpartition("_look_")[0]
        media.write_png(folder / f"{layer_name}_looks.png", contact_rows(sheet, SHEET_COLUMNS, height=SHEET_PX))
    return images
