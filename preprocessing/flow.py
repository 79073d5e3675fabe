"""Optical flow between neighbouring frames by any method, beside the frames: NAME_flow/A_B.npz, both ways."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

import media
from command_line import UserError, resolve_folder_name, warn
from media.flows import find_flow, flow_name, flow_size, write_flow
from preprocessing.flow_pairs import FlowMethod, Pair, write_in_threads, write_in_turn


@dataclass(frozen=True)
class FlowRequest:
    """Which flow, and how to find it."""

    method: str = "auto"
    max_long_edge: int = 768  # pixels
    weights: Path | None = None
    source: Path | None = None  # import: a folder
    format: str = "npz"


def write_clip_flow(video: Path, request: FlowRequest) -> Path:
    """Write the flow that is missing, of every two neighbouring frames both ways; returns its folder."""
    video = resolve_folder_name(video)
    frames = list_at_least_two_frames(video)
    size = fit_size(media.image_size(frames[0]), request.max_long_edge)
    folder = video.with_name(video.name + "_flow")
    pairs = find_missing_pairs(frames, folder, size, request.format)
    total = 2 * len(frames) - 2
    if not pairs:
        print(f"all {total} flow files are there already: {folder}")
        return folder
    work = write_pairs(pairs, size, request)
    media.make_folder(folder)
    count = sum((pair.forward is not None) + (pair.backward is not None) for pair in pairs)
    print(f"{count} of {total} flow files at {size[0]} x {size[1]}, writing to {folder}", flush=True)
    for _ in tqdm(work, desc="flow", unit="pair", total=len(pairs)):
        pass
    print(f"wrote {folder}")
    return folder


def list_at_least_two_frames(folder: Path) -> list[Path]:
    """The frames of a clip. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --vid-path takes the folder of frames")
    frames = media.list_images(folder)
    if len(frames) < 2:
        raise UserError(f"{folder}: holds {len(frames)} images; flow needs at least 2 frames")
    return frames


def fit_size(size: tuple[int, int], max_long_edge: int) -> tuple[int, int]:
    """(width, height) of the same aspect with no side above max_long_edge; never larger than it was."""
    scale = min(1.0, max_long_edge / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def find_missing_pairs(frames: list[Path], folder: Path, size: tuple[int, int], suffix: str) -> list[Pair]:
    """The pairs of which a direction is missing or damaged; warns of flow that is kept at another size."""
    other: list[tuple[int, int]] = []

    def target(source: Path, end: Path) -> Path | None:
        """Where the flow is to be written, over a damaged file too; None if it is there."""
        path = find_flow(folder, source.name, end.name)
        found = flow_size(path) if path else None
        if found is None:
            return path or folder / flow_name(source.name, end.name, f".{suffix}")
        if found != size:
            other.append(found)
        return None

    pairs = [Pair(a, b, target(a, b), target(b, a)) for a, b in pairwise(frames)]
    if other:
        kept = "{} x {}".format(*other[0])
        warn(f"{folder}: {len(other)} flow files of another size ({kept}) are kept; delete them to compute them anew")
    return [pair for pair in pairs if pair.forward or pair.backward]


def write_pairs(pairs: list[Pair], size: tuple[int, int], request: FlowRequest) -> Iterator[None]:
    """Write the pairs' flow by the chosen method, yielding after each; what can't be used is refused at once."""
    if request.method == "import":
        return import_pairs(pairs, size, request.source)
    raft = None if request.method == "dis" else make_raft(request.method, request.weights)
    if raft is not None:
        return write_in_turn(pairs, size, raft)

    from alignment.dis_flow import DisFlow

    return write_in_threads(pairs, size, DisFlow)


def import_pairs(pairs: list[Pair], size: tuple[int, int], folder: Path) -> Iterator[None]:
    """Flow from somebody else's files; all are looked for before the first is written."""
    from preprocessing.flow_import import ImportedFlow

    source, native = ImportedFlow(folder), media.image_size(pairs[0].first)
    wanted = [
        [(a, b, path) for a, b, path in ((p.first, p.second, p.forward), (p.second, p.first, p.backward)) if path]
        for p in pairs
    ]
    for directions in wanted:
        for a, b, _ in directions:
            source.find(a, b)

    def write() -> Iterator[None]:
        for directions in wanted:
            for a, b, path in directions:
                write_flow(path, source.read(a, b, size, native))
            yield

    return write()


def make_raft(name: str, weights: Path | None) -> FlowMethod | None:
    """RAFT of a method's name; None where `auto` has to do without, which it says."""
    from preprocessing.flow_raft import thirdparty_raft, torchvision_raft
    from unwrap_utils import pick_device

    if name == "raft-thirdparty":
        return thirdparty_raft(weights, pick_device())
    try:
        return torchvision_raft(weights, pick_device())
    except UserError as error:
        if name == "raft" or weights is not None:
            raise
        print(f"falling back to --method dis: {error}", file=sys.stderr, flush=True)
        return None
