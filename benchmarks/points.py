"""Read points that people placed by hand on real clips: TAP-Vid's pickle, the same per clip as .npz, BADJA's JSON."""

import io
import json
import pickle
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from command_line import UserError

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

QUERY_STEP = 5  # TAP-Vid, mode "strided": every fifth frame holds a query of each point that is visible there.
BADJA_SIZE = (1920, 1080)  # Width and height of the pictures in whose pixels BADJA gives its joints.
# The 20 of 37 joints that BADJA counts.
BADJA_JOINTS = (8, 9, 10, 12, 13, 14, 15, 18, 19, 20, 22, 23, 24, 25, 28, 31, 32, 33, 35, 36)
BADJA_LEGS = (8, 9, 10, 12, 13, 14, 18, 19, 20, 22, 23, 24)  # Those of them that lie on legs.
# What a pickle of numpy arrays needs to be read. Nothing else is loaded, because a pickle can run any code.
ALLOWED_IN_PICKLES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}


@dataclass(frozen=True)
class PlacedTracks:
    """N hand-placed points of a clip, each through T frames. Positions are (x, y) as shares of width and height."""

    queries: Floats  # (N, 3) frame, x, y at which each point is given
    positions: Floats  # (N, T, 2)
    is_visible: Flags  # (N, T)
    is_object: Flags | None = None  # (N,) True on the object; None: not known

    def choose(self, chosen: Flags) -> "PlacedTracks":
        """Return some of the points. chosen: (N,)."""
        is_object = None if self.is_object is None else self.is_object[chosen]
        return PlacedTracks(self.queries[chosen], self.positions[chosen], self.is_visible[chosen], is_object)


@dataclass(frozen=True)
class PlacedJoints:
    """Hand-placed joints of an animal in A frames of a clip. Positions are (x, y) as shares of width and height."""

    frames: list[int]  # numbers of the frames, ascending
    positions: Floats  # (A, 20, 2)
    is_visible: Flags  # (A, 20)


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays in dictionaries and lists, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that a pickle names. Raises UnpicklingError for all but those of arrays."""
        if (module, name) not in ALLOWED_IN_PICKLES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, expected arrays only")
        return super().find_class(module, name)


def read_tap_vid_pickle(path: Path) -> dict[str, PlacedTracks]:
    """Return the points of each clip in an official file of TAP-Vid. Raises UserError if it is none."""
    try:
        clips = ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
        return {str(name): tracks_from_tap_vid(clip["points"], clip["occluded"]) for name, clip in clips.items()}
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: no file of TAP-Vid's points ({error}); give tapvid_davis.pkl") from None


def tracks_from_tap_vid(points: Floats, occluded: Flags) -> PlacedTracks:
    """Return points (N, T, 2) in [0, 1], and where they are occluded (N, T), with the queries of the mode "strided"."""
    points, is_visible = np.asarray(points, np.float32), ~np.asarray(occluded, bool)
    starts = [(n, t) for t in range(0, points.shape[1], QUERY_STEP) for n in np.flatnonzero(is_visible[:, t])]
    queries = np.array([[t, *points[n, t]] for n, t in starts], np.float32).reshape(-1, 3)
    numbers = [n for n, _ in starts]
    return PlacedTracks(queries, points[numbers], is_visible[numbers])


def read_tracks(path: Path) -> PlacedTracks:
    """Return the points of a clip from an .npz with query, tracks, occluded, is_fg, w and h. Raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            size = np.array([float(file["w"]), float(file["h"])], np.float32)
            queries = file["query"].astype(np.float32) / np.array([1, *size], np.float32)
            tracks, occluded, is_object = file["tracks"], file["occluded"], file["is_fg"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no file of points ({error}); expected query, tracks, occluded, is_fg, w, h") from None
    if not len(queries) == len(tracks) == len(occluded) == len(is_object) or tracks.shape[:2] != occluded.shape:
        raise UserError(f"{path}: its arrays differ in length; expected one row per point in each")
    return PlacedTracks(queries, tracks / size, ~occluded.astype(bool), is_object.astype(bool))


def read_joints(path: Path) -> PlacedJoints:
    """Return the joints of a clip from a JSON of BADJA. Raises UserError if it is none."""
    chosen = list(BADJA_JOINTS)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        frames = [int(re.findall(r"\d+", Path(row["image_path"]).stem)[-1]) for row in rows]
        rows_and_columns = np.array([row["joints"] for row in rows], np.float32)[:, chosen]
        places: Floats = rows_and_columns[..., ::-1]
        is_visible = np.array([row["visibility"] for row in rows], bool)[:, chosen]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: no file of BADJA's joints ({error}); expected joints and visibility") from None
    order = np.argsort(frames)
    frames, places, is_visible = [frames[index] for index in order], places[order], is_visible[order]
    return PlacedJoints(frames, np.divide(places, BADJA_SIZE), is_visible)


def first_frames(tracks: PlacedTracks, count: int) -> PlacedTracks:
    """Return the tracks in the first `count` frames, without the queries in later ones."""
    early = tracks.queries[:, 0] < count
    is_object = None if tracks.is_object is None else tracks.is_object[early]
    return replace(
        tracks,
        queries=tracks.queries[early],
        positions=tracks.positions[early, :count],
        is_visible=tracks.is_visible[early, :count],
        is_object=is_object,
    )
