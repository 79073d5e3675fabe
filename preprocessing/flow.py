"""Write the optical flow between neighbouring frames, in both directions, into NAME_flow/A_B.npz beside the frames."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

import media
from command_line import UserError, resolve_folder_name, warn
from media.flows import find_flow, flow_name, flow_size, write_flow
from media.images import fit_size
from preprocessing.flow_pairs import FlowMethod, Pair, write_in_threads, write_in_turn


@dataclass(frozen=True)
class FlowRequest:
    """Which flow to write, and by which method."""

    method: str = "auto"  # auto, raft, dis, raft-thirdparty or import
    max_long_edge: int = 768  # longer side at which flow is computed, in pixels
    weights: Path | None = None  # local file with the weights of RAFT
    source: Path | None = None  # folder of flow files, for the method "import"
    format: str = "npz"  # npz or npy


def write_clip_flow(video: Path, request: FlowRequest) -> Path:
    """Write all flow files that are missing or damaged, in both directions, and return the folder of the flow."""
    video = resolve_folder_name(video)
    frames = list_at_least_two_frames(video)
    size = fit_size(media.image_size(frames[0]), request.max_long_edge)
    folder = video.with_name(video.name + "_flow")
    pairs = find_missing_pairs(frames, folder, size, request.format)
    total = 2 * len(frames) - 2
    if not pairs:
        print(f"all {total} flow files exist already: {folder}")
        return folder
    work = write_pairs(pairs, size, request)
    media.make_folder(folder)
    count = sum(len(pair.missing_files()) for pair in pairs)
    which = f"{total} flow files" if count == total else f"missing flow files: {count} of {total},"
    print(f"computing {which} at {size[0]} x {size[1]}, writing to {folder}", flush=True)
    for _ in tqdm(work, desc="flow", unit="pair", total=len(pairs)):
        pass
    print(f"wrote {folder}")
    return folder


def list_at_least_two_frames(folder: Path) -> list[Path]:
    """Return the frames of a clip in order. Raise UserError without the folder, or with fewer than two frames."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --vid-path takes the folder of frames")
    frames = media.list_images(folder)
    if len(frames) < 2:
        raise UserError(f"{folder}: holds {len(frames)} images; flow needs at least 2 frames")
    return frames


def find_missing_pairs(frames: list[Path], folder: Path, size: tuple[int, int], suffix: str) -> list[Pair]:
    """Return the pairs of frames of which at least one direction is missing or damaged.

    Whole flow files of another size than `size` are kept, with a warning.
    """
    other_sizes: list[tuple[int, int]] = []

    def find_target(source: Path, target: Path) -> Path | None:
        """Return the file to write, which may be a damaged one; None if a whole file exists."""
        path = find_flow(folder, source.name, target.name)
        existing_size = flow_size(path) if path else None
        if existing_size is None:
            return path or folder / flow_name(source.name, target.name, f".{suffix}")
        if existing_size != size:
            other_sizes.append(existing_size)
        return None

    pairs = [Pair(a, b, find_target(a, b), find_target(b, a)) for a, b in pairwise(frames)]
    if other_sizes:
        example = "{} x {}".format(*other_sizes[0])
        warn(
            f"{folder}: {len(other_sizes)} flow files of another size ({example}) are kept; "
            "delete them to compute them anew"
        )
    return [pair for pair in pairs if pair.missing_files()]


def write_pairs(pairs: list[Pair], size: tuple[int, int], request: FlowRequest) -> Iterator[None]:
    """Write the missing flow of the pairs at (width, height) by the requested method; yield after each pair.

    Raise UserError at the call, before anything is written, if the method cannot be used.
    """
    if request.method == "import":
        if request.source is None:
            raise UserError("--method import needs --flow, a folder of flow files")
        return import_pairs(pairs, size, request.source)
    raft = None if request.method == "dis" else load_raft(request.method, request.weights)
    if raft is not None:
        return write_in_turn(pairs, size, raft)

    from alignment.dis_flow import DisFlow

    return write_in_threads(pairs, size, DisFlow)


def import_pairs(pairs: list[Pair], size: tuple[int, int], folder: Path) -> Iterator[None]:
    """Write the missing flow of the pairs from the files of another program; yield after each pair.

    Raise UserError at the call, before anything is written, if a file is missing.
    """
    from preprocessing.flow_import import ImportedFlow

    imported, native_size = ImportedFlow(folder), media.image_size(pairs[0].first)
    for pair in pairs:
        for source, target, _ in pair.missing_files():
            imported.find_file(source, target)

    def write() -> Iterator[None]:
        for pair in pairs:
            for source, target, path in pair.missing_files():
                write_flow(path, imported.read(source, target, size, native_size))
            yield

    return write()


def load_raft(method: str, weights: Path | None) -> FlowMethod | None:
    """Return RAFT for the method "raft", "raft-thirdparty" or "auto".

    Where the weights cannot be had, "auto" prints that it falls back and returns None; the others raise UserError.
    """
    from preprocessing.flow_raft import load_thirdparty_raft, load_torchvision_raft
    from unwrap_utils import pick_device

    if method == "raft-thirdparty":
        return load_thirdparty_raft(weights, pick_device())
    try:
        return load_torchvision_raft(weights, pick_device())
    except UserError as error:
        if method == "raft" or weights is not None:
            raise
        print(f"falling back to --method dis: {error}", file=sys.stderr, flush=True)
        return None
