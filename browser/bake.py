"""A run as the page needs it: for each frame its picture, opacity, mapping, light and trust as small files.

A mapping is smooth, so its values at nodes every few pixels are enough; the page interpolates between them. Nothing
grows with the length of the clip but the number of files.
"""

import io
import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import reduce
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

import media
from command_line import UserError, warn
from editing.atlas_file import LayerImage, checkpoint_fingerprint
from editing.attachment import continue_mapping
from export.atlas import LayerExtent, measure_extent, plan_image
from grids.frames import LARGEST_LOG_LIGHT
from media import Pixels, to_8_bit
from media.clip import Clip, evenly_spaced_indices
from media.flows import FORWARD
from media.sound import Audio, SoundWriter
from rendering.atlas_view import render_atlas
from rendering.frames import VISIBLE, Floats, Frame, map_frames
from rendering.halo import coverage_in_front, in_halo
from rendering.hidden_light import continue_light
from rendering.resampling import sample_field
from rendering.trained_run import TrainedRun

BAKE_FORMAT = 5  # Raised when the files change, so that older ones are written again.
DESCRIPTION = "bake.json"
LATTICE_PX = 8  # Largest distance of the nodes of mappings and trust, in pixels of working size.
LATTICE_SHARE = 1 / 96  # The same as a share of the long edge: mappings of small frames bend within fewer pixels.
KINKED_LATTICE_PX = 16  # The same for mappings that are almost linear between their kinks.
LIGHT_LATTICE_PX = 16  # Largest distance of the nodes of light.
FRAME_QUALITY, ATLAS_QUALITY = 90, 90  # of the JPEG files
LARGEST_LIGHT = math.exp(LARGEST_LOG_LIGHT)  # Light that is stored as 255.
MEASURED_FRAMES = 24  # Frames in which the scale of the mappings is measured.
MEASURED_STEPS = 5_000  # Values of each of them.
LARGEST_SURFACE_PX = 4096  # Longest side of the picture that is painted on; browsers allow no more everywhere.
SURFACE_MULTIPLE = 64  # Sides are multiples of it, so that halving them six times leaves no half pixels.
ROOM = 0.15  # Room around an object for paint that leaves its outline, as a share of its longer side.
TRUST_STEPS_PER_PX = 32  # Contradictions are stored in units of 1 / 32 pixel, up to 8 pixels.
FOLDED = 255  # Value of trust where a mapping folds over.
THUMBNAILS, THUMBNAIL_PX = 24, 64  # Most small pictures for the timeline, and their height.


@dataclass(frozen=True)
class BakedFrame:
    """The files of a frame, and what is measured on it."""

    frame: Frame
    picture: bytes  # JPEG
    alpha: bytes  # PNG, the opacity of all objects below each other
    uv: NDArray[np.float32]  # (L, rows, columns, 2) at the nodes
    light: Pixels  # (2, rows, columns, 3) at the nodes of light: seen, behind objects; empty without light
    extents: list[LayerExtent | None]
    thumbnail: Pixels | None


def bake_run(run: TrainedRun, folder: Path, audio: Audio | None = None) -> dict[str, Any]:
    """Write the files of a run into a folder, if they are not there already, and return their description.

    audio: the clip's sound. Raises UserError if no layer is visible in any frame.
    """
    description = read_bake(folder, run)
    if description is not None:
        return description
    media.make_folder(folder)
    measured = set(evenly_spaced_indices(len(run.clip), MEASURED_FRAMES))
    thumbnail_frames = set(evenly_spaced_indices(len(run.clip), THUMBNAILS))

    def bake(frame: Frame) -> BakedFrame:
        return bake_frame(run, frame, frame.t in measured, frame.t in thumbnail_frames)

    extents = [LayerExtent() for _ in run.model.layers]
    thumbnails: list[Pixels] = []
    has_light = False
    frames = map_frames(bake, run.model, run.clip, full_range=True, with_colors=False)
    with closing(frames):
        bar = tqdm(frames, total=len(run.clip), desc="preparing the frames", unit="frame")
        for baked, following in with_next(bar):
            trust = measure_trust(run, baked.frame, following.frame if following else None)
            write_frame(folder, baked, trust)
            has_light = baked.light.size > 0
            parts = zip(extents, baked.extents, strict=True)
            extents = [reduce(LayerExtent.join, [part for part in pair if part is not None]) for pair in parts]
            thumbnails += [] if baked.thumbnail is None else [baked.thumbnail]
    write_jpeg(folder / "thumbnails.jpg", np.concatenate(thumbnails, axis=1), FRAME_QUALITY)
    surfaces = [plan_surface(run, extent, index) for index, extent in enumerate(extents)]
    if not any(surfaces):
        raise UserError(f"{run.checkpoint.parent}: no layer is visible in any frame, nothing to edit; train again")
    for surface in filter(None, surfaces):
        size = (surface.width, surface.height)
        picture = to_8_bit(render_atlas(run.model, surface.view(run.model, size, None), size))
        write_jpeg(folder / surface.image, picture, ATLAS_QUALITY)
    if audio is not None:
        times_s = run.clip.times_s
        seconds = times_s[-1] - times_s[0] if times_s else len(run.clip) / run.clip.fps
        write_sound(folder / "sound.m4a", audio, seconds)
    description = describe_bake(run, surfaces, len(thumbnails), None if audio is None else audio.lead_s, has_light)
    text = json.dumps(description, indent=2) + "\n"
    media.write_text(folder / DESCRIPTION, text)  # Last: it says all is there.
    return cast("dict[str, Any]", json.loads(text))


def read_bake(folder: Path, run: TrainedRun) -> dict[str, Any] | None:
    """Return the description of a folder's files; None if they are missing or belong to another state of the run."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_current = isinstance(description, dict) and description.get("fingerprint") == bake_fingerprint(run)
    return description if is_current else None


def bake_fingerprint(run: TrainedRun) -> str:
    """Return 16 hexadecimal digits that change with the checkpoint, the frames, their times, and the baked files."""
    clip = run.clip
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in clip.frame_paths]
    known = [BAKE_FORMAT, checkpoint_fingerprint(run.checkpoint), describe_clip(clip), clip.fps, clip.times_s, files]
    return sha256(json.dumps(known).encode()).hexdigest()[:16]


def describe_clip(clip: Clip) -> dict[str, Any]:
    """Return what tells one clip from another: its name, number of frames, and working size."""
    return {"name": clip.name, "frames": len(clip), "width": clip.width, "height": clip.height}


def describe_bake(
    run: TrainedRun, surfaces: list[LayerImage | None], thumbnails: int, sound_lead_s: float | None, has_light: bool
) -> dict[str, Any]:
    """Return everything that the page has to know to use the files.

    sound_lead_s: seconds by which the sound begins before the first frame; None without sound.
    """
    clip = run.clip
    return {
        "fingerprint": bake_fingerprint(run),
        "checkpoint": checkpoint_fingerprint(run.checkpoint),
        "run": run.name,
        "clip": describe_clip(clip),
        "native_size": list(clip.native_size),
        "fps": clip.fps,
        "times_s": list(clip.times_s),
        "layers": [
            {"name": layer.name, "is_background": layer.is_background, "surface": surface and asdict(surface)}
            for layer, surface in zip(run.model.layers, surfaces, strict=True)
        ],
        "lattice": describe_nodes(mapping_nodes(run)),
        "light": describe_nodes(light_nodes(run)) if has_light else None,
        "largest_light": LARGEST_LIGHT,
        "trust_steps_per_px": TRUST_STEPS_PER_PX,
        "thumbnails": thumbnails,
        "sound_lead_s": sound_lead_s,
    }


def describe_nodes(nodes: "Nodes") -> dict[str, list[float]]:
    """Return the rows and columns of nodes as numbers for the page."""
    return {"rows_px": nodes.rows_px.tolist(), "columns_px": nodes.columns_px.tolist()}


@dataclass(frozen=True)
class Nodes:
    """Rows and columns, in pixels, from the first pixel to the last, between which a field is interpolated."""

    rows_px: NDArray[np.float64]
    columns_px: NDArray[np.float64]

    def pixels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row and the column of the pixel nearest to each node, (rows, columns) each."""
        axes = (axis.round().astype(np.int64) for axis in (self.rows_px, self.columns_px))
        rows, columns = np.meshgrid(*axes, indexing="ij")
        return rows, columns

    def sample(self, field: Floats) -> NDArray[np.float32]:
        """Return the values of a field (H, W, C) at the nodes, (rows, columns, C)."""
        for axis, positions in enumerate((self.rows_px, self.columns_px)):
            before = np.floor(positions).astype(int).clip(0, max(0, field.shape[axis] - 2))
            share = (positions - before).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(3)])
            after = np.minimum(before + 1, field.shape[axis] - 1)
            field = np.take(field, before, axis) * (1 - share) + np.take(field, after, axis) * share
        return np.ascontiguousarray(field, np.float32)


def mapping_nodes(run: TrainedRun) -> Nodes:
    """Return the nodes at which the mappings of a run are stored.

    Where mappings have kinks, as those of grids, the nodes lie on them, because interpolation over a kink loses much.
    """
    kinks, sides = run.model.mapping_kinks(), (run.clip.height, run.clip.width)
    smooth_gap = min(LATTICE_PX, max(1.0, max(sides) * LATTICE_SHARE))
    gap = KINKED_LATTICE_PX if kinks[0] else smooth_gap
    return Nodes(*(place_nodes(side, axis, gap) for side, axis in zip(sides, kinks, strict=True)))


def light_nodes(run: TrainedRun) -> Nodes:
    """Return the nodes at which light is stored, which are those of grids."""
    return Nodes(*(place_nodes(side, [], LIGHT_LATTICE_PX) for side in (run.clip.height, run.clip.width)))


def place_nodes(side: int, kinks: list[float], gap: float) -> NDArray[np.float64]:
    """Return positions from the first pixel of a side to the last, at most gap pixels apart, with all kinks."""
    fixed = np.unique(np.round([0.0, *kinks, max(side - 1, 1)], 4))
    pieces = [
        np.linspace(first, last, max(1, int(np.ceil((last - first) / gap - 1e-6))), endpoint=False)
        for first, last in pairwise(fixed)
    ]
    return np.append(np.concatenate(pieces), fixed[-1])


def bake_frame(run: TrainedRun, frame: Frame, is_measured: bool, with_thumbnail: bool) -> BakedFrame:
    """Return the files of a rendered frame, and its extents, with steps if it is measured."""
    source = run.clip.frame(frame.t)
    alpha = to_8_bit(np.concatenate(list(frame.alpha), axis=0))
    light = np.empty(0, np.uint8)
    if frame.light is not None:
        is_hidden = in_halo(coverage_in_front(frame.alpha, len(frame.alpha)), max(frame.light.shape[:2]))
        behind = continue_light(frame.light, is_hidden, max(frame.light.shape[:2]))
        light = to_8_bit(np.stack([light_nodes(run).sample(each) for each in (frame.light, behind)]) / LARGEST_LIGHT)
    extents = [measure_extent(frame, layer.index, is_measured) for layer in run.model.layers]
    for extent in filter(None, extents):
        extent.steps = extent.steps[:: max(1, len(extent.steps) // MEASURED_STEPS)]
    thumbnail_width = max(1, round(THUMBNAIL_PX * run.clip.width / run.clip.height))
    return BakedFrame(
        frame,
        encode_jpeg(source, FRAME_QUALITY),
        encode_png(alpha),
        sample_mappings(run, frame),
        light,
        extents,
        media.resize(source, thumbnail_width, THUMBNAIL_PX) if with_thumbnail else None,
    )


@torch.no_grad()
def sample_mappings(run: TrainedRun, frame: Frame) -> NDArray[np.float32]:
    """Return the uv of each layer at the nodes, (L, rows, columns, 2).

    Beyond an object's outline its mapping is continued as for attached paint. Nodes of cells that the object touches
    keep their own mapping, because the page interpolates it up to the outline.
    """
    nodes = mapping_nodes(run)
    rows_px, columns_px = torch.from_numpy(nodes.rows_px), torch.from_numpy(nodes.columns_px)
    uv = run.model.lattice_uv(frame.t, rows_px, columns_px, run.clip.size).cpu().numpy().astype(np.float32)
    kernel = np.ones((2 * KINKED_LATTICE_PX + 3,) * 2, np.uint8)
    for layer in range(len(uv) - 1):
        is_near = cv2.dilate((frame.visibility[layer] > VISIBLE).astype(np.uint8), kernel)[nodes.pixels()] > 0
        uv[layer] = np.where(is_near[..., None], uv[layer], nodes.sample(continue_mapping(frame, layer)))
    return uv


def measure_trust(run: TrainedRun, frame: Frame, following: Frame | None) -> NDArray[np.uint8]:
    """Return where the mapping contradicts the flow or itself, at the nodes, (rows, columns) uint8.

    The value is the distance, in 1 / TRUST_STEPS_PER_PX pixels, between the place in the atlas of a pixel and that of
    the pixel of the next frame to which the flow leads, on the layer that is seen most; FOLDED where the mapping of
    that layer changes its orientation. The last frame, and clips without flow, have no distances.
    """
    size, (rows, columns) = frame.alpha.shape[1:], mapping_nodes(run).pixels()
    shown = frame.visibility.argmax(0)[rows, columns]
    trust = np.zeros(shown.shape)
    flow = None
    if following is not None and run.clip.sibling_folder("_flow").is_dir():
        try:
            flow = run.clip.flow(frame.t, FORWARD)
        except UserError as error:  # Paint needs no flow.
            warn(f"{error}; the trust map has no distances in frame {frame.t}")
    for layer, px_per_uv in enumerate(run.px_per_uv):
        is_layer = shown == layer
        if flow is not None and following is not None:
            ends = (np.dstack((columns, rows)) + flow[rows, columns]).astype(np.float32)
            moved = sample_field(following.uv[layer], ends) - frame.uv[layer][rows, columns]
            is_followed = sample_field(following.visibility[layer], ends) > VISIBLE
            is_inside = ((ends >= 0) & (ends <= (size[1] - 1, size[0] - 1))).all(-1)
            distance_px = np.linalg.norm(moved, axis=-1) * px_per_uv
            trust = np.where(is_layer & is_followed & is_inside, distance_px * TRUST_STEPS_PER_PX, trust)
        trust = np.where(is_layer & find_folds(frame.uv[layer])[rows, columns], FOLDED, trust)
    return trust.clip(0, 255).astype(np.uint8)


def find_folds(uv: Floats) -> NDArray[np.bool_]:
    """Return where a mapping (H, W, 2) has another orientation than in most of the frame, (H, W)."""
    (u_x, v_x), (u_y, v_y) = (np.moveaxis(np.gradient(uv, axis=axis), -1, 0) for axis in (1, 0))
    determinant = u_x * v_y - u_y * v_x
    return np.asarray(determinant * np.sign(np.median(determinant)) < 0)


def plan_surface(run: TrainedRun, extent: LayerExtent, index: int) -> LayerImage | None:
    """Return the picture of a layer's atlas that is painted on; None if no frame shows the layer.

    It is as fine as the video, and its sides are multiples of SURFACE_MULTIPLE.
    """
    name = f"atlas_{index}.jpg"
    bare = plan_image(run, extent, index, name, margin_px=0, largest_side_px=LARGEST_SURFACE_PX * 2 // 3)
    if bare is None:
        return None
    room = 0 if run.model.layers[index].is_background else int(ROOM * max(bare.width, bare.height))
    sides = [-(-(side + 2 * room) // SURFACE_MULTIPLE) * SURFACE_MULTIPLE for side in (bare.width, bare.height)]
    u, v = (
        corner - (side - inner) // 2 * bare.uv_per_pixel
        for corner, side, inner in zip((bare.u, bare.v), sides, (bare.width, bare.height), strict=True)
    )
    return replace(bare, width=sides[0], height=sides[1], u=u, v=v)


def write_frame(folder: Path, baked: BakedFrame, trust: NDArray[np.uint8]) -> None:
    """Write the three files of a frame: its picture, opacity, and fields (mappings, light and trust)."""
    name = f"{baked.frame.t:05d}"
    (folder / f"{name}.jpg").write_bytes(baked.picture)
    (folder / f"{name}.png").write_bytes(baked.alpha)
    fields = baked.uv.astype("<f4").tobytes() + baked.light.tobytes() + trust.tobytes()
    (folder / f"{name}.bin").write_bytes(fields)


def write_sound(path: Path, audio: Audio, seconds: float) -> None:
    """Write the sound of a clip as AAC."""
    with media.write_atomically(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        sound = SoundWriter(audio, container)
        sound.write_until(seconds + audio.lead_s)
        sound.close()


def with_next(items: Iterator[BakedFrame]) -> Iterator[tuple[BakedFrame, BakedFrame | None]]:
    """Yield each item with the one that follows it; the last one with None."""
    before: BakedFrame | None = None
    for item in items:
        if before is not None:
            yield before, item
        before = item
    if before is not None:
        yield before, None


def encode_jpeg(picture: Pixels, quality: int) -> bytes:
    """Return a picture (H, W, 3) as JPEG, with colours at full resolution."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def encode_png(picture: Pixels) -> bytes:
    """Return a picture (H, W) as PNG."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def write_jpeg(path: Path, picture: Pixels, quality: int) -> None:
    """Write a picture (H, W, 3) as JPEG."""
    path.write_bytes(encode_jpeg(picture, quality))
