"""Read masks of another program (SAM 2, After Effects, DAVIS, a matting tool): a folder of pictures or a video."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

import media
from command_line import UserError, warn
from media import Pixels
from media.clip import has_same_aspect
from media.color import Picture
from media.container import count_frames, has_hidden_alpha
from media.decoding import ALPHA_REMEDY, read_video, read_video_metadata
from preprocessing.extract import Span, read_clip_note

MOST_COUNTED = 10_000  # Frames of a video that are counted for a message.


def read_masks(
    source: Path,
    frames: list[Path],
    label: int | None = None,
    threshold: float | None = None,
    mask_kind: str | None = None,
) -> Iterator[Pixels]:
    """Yield a mask (H, W) uint8, 255 inside, for every frame, from a folder or a video.

    label: the only label to read from label pictures; None reads pictures as masks. threshold: masks become hard, with
    values above this one in [0, 1] inside; None keeps soft values. mask_kind: "labels", "matte" or None, see
    `choose_kind`. Raise UserError if the source is neither a folder nor a video, or has another number of pictures or
    another aspect than the frames.
    """
    native_size = media.image_size(frames[0])
    if source.is_dir():
        masks = read_folder_masks(source, frames, label, mask_kind)
    elif source.is_file():
        if label is not None or mask_kind == "labels":
            flag = "--mask_kind labels" if label is None else "--label"
            raise UserError(f"{source}: a video has no labels; leave {flag} out or give a folder of label pictures")
        masks = read_video_masks(source, frames)
    else:
        raise UserError(f"{source}: no such file; --masks takes a folder of mask pictures or a matte video")
    for path, mask in masks:
        height, width = mask.shape
        if not has_same_aspect((width, height), native_size):
            raise UserError(
                f"{path}: is {width} x {height}, the frames are {native_size[0]} x {native_size[1]}; "
                "masks must have the frames' aspect"
            )
        yield mask if threshold is None else np.where(mask > 255 * threshold, 255, 0).astype(np.uint8)


def find_picture_folder(folder: Path) -> Path:
    """Return the folder itself, or its only subfolder with pictures if it holds none; that is printed."""
    if not media.list_images(folder):
        within = [path for path in sorted(folder.iterdir()) if path.is_dir() and media.list_images(path)]
        if len(within) == 1:
            print(f"{folder}: holds no pictures itself; those in {within[0].name} are taken", flush=True)
            return within[0]
    return folder


def read_folder_masks(
    folder: Path, frames: list[Path], label: int | None, mask_kind: str | None
) -> Iterator[tuple[Path, Pixels]]:
    """Yield the path and the mask (H, W) uint8 of each frame, from a folder of pictures.

    Pictures are paired with frames by name. If some names differ but the numbers are equal, they are paired in order.
    Raise UserError if the numbers differ as well.
    """
    pictures = media.list_images(find_picture_folder(folder))
    by_name = {path.stem: path for path in pictures}
    if (numbers := find_frame_numbers(frames[0].parent, len(pictures))) is not None:
        first = pictures[numbers[0]].name
        tqdm.write(f"{folder}: holds masks of the whole video; those of the part are taken, from {first} on")
        chosen = [pictures[number] for number in numbers]
    elif missing := [frame.stem for frame in frames if frame.stem not in by_name]:
        if not pictures:
            raise UserError(media.explain_empty_folder(folder))
        if len(pictures) != len(frames):
            raise UserError(
                f"{folder} holds {len(pictures)} pictures for {len(frames)} frames, and none is named {missing[0]}; "
                "name masks as their frames, or have one for every frame"
            )
        print(f"{folder}: names differ from the frames'; taken in order, {pictures[0].name} for {frames[0].name}")
        chosen = pictures
    else:
        chosen = [by_name[frame.stem] for frame in frames]
        if (extra := len(pictures) - len(chosen)) > 0:
            warn(f"{folder}: {extra} of {len(pictures)} pictures belong to no frame and are left out")
    kind = None if label is not None else choose_kind(folder, chosen, mask_kind)
    for path in chosen:
        yield path, media.read_mask(path, kind) if label is None else media.read_labels(path, label)


def find_frame_numbers(frames: Path, pictures: int) -> list[int] | None:
    """Return the numbers that the frames of a clip have in their video, if a folder has a picture for each of those.

    Returns None if the clip is the whole video, if there are as many pictures as frames, or if nothing is known of the
    video. Raises UserError if there are more pictures than frames of a part, but not those of the whole video: which
    picture belongs to which frame is not known then.
    """
    note = read_clip_note(frames)
    if note is None or pictures <= note.frames or (note.start_s, note.end_s, note.every) == (0, None, 1):
        return None
    source = Path(note.source)
    whole = count_frames(source, 0, None, max(pictures, MOST_COUNTED)) if source.is_file() else None
    if whole == pictures:
        first = count_frames(source, 0, note.start_s, pictures) if note.start_s > 0 else 0
        return list(range(first, first + note.every * note.frames, note.every))
    which = f", which has {whole}" if whole is not None and whole <= MOST_COUNTED else ""
    raise UserError(
        f"{pictures} masks for {note.frames} frames, which are a part of {source.name}; give a mask for each of these "
        f"frames, or for each frame of the whole video{which}"
    )


def choose_kind(folder: Path, pictures: list[Path], mask_kind: str | None) -> media.MaskKind:
    """Return how the values of all pictures are read, and print it: as asked for, or as they show together."""
    kind = media.find_mask_kind(pictures)
    if mask_kind is not None:
        kind = replace(kind, is_labels=mask_kind == "labels")
    meaning = "labels, every value but 0 is the object" if kind.is_labels else "a matte, their values are opacity"
    if kind.is_black_and_white and not kind.is_labels:
        meaning = "black and white masks, white is the object"
    void = "; one value means that nobody labelled the pixel" if kind.is_labels and kind.has_void else ""
    other_kind = "matte" if kind.is_labels else "labels"
    other = f" (--mask_kind {other_kind} reads them otherwise)" if kind.is_ambiguous else ""
    tqdm.write(f"{folder}: read as {meaning}{void}{other}")  # It may stand above a progress bar.
    if kind.is_photo and not kind.is_labels:
        warn(f"{folder}: pictures of many colours without opacity are no usual masks; their strongest channel is taken")
    return kind


def read_video_masks(path: Path, frames: list[Path]) -> Iterator[tuple[Path, Pixels]]:
    """Yield the path and the mask (H, W) uint8 of each frame, from a matte video.

    If the frames are a part of a video and the matte is as long as the whole video, the same part of the matte is read.
    Raise UserError if the matte has another number of frames.
    """
    expected, count = len(frames), 0
    masks = read_matte(path, find_matte_span(path, frames[0].parent))
    for mask in itertools.islice(masks, expected):
        count += 1
        yield path, mask
    if count < expected or next(masks, None) is not None:
        length = f"only {count}" if count < expected else f"more than {expected}"
        raise UserError(f"{path}: has {length} frames, the clip has {expected}; export a matte of the same frames")


def find_matte_span(path: Path, folder: Path) -> Span:
    """Return the part of a matte video that belongs to the frames in a folder."""
    note, part = read_clip_note(folder), Span()
    if note is not None and count_frames(path, 0, None, note.frames) != note.frames:
        part = Span(note.start_s, note.end_s, note.every)
    is_whole = note is None or part.count_frames(path, note.frames) != note.frames
    return Span() if is_whole else part


def read_matte(path: Path, span: Span) -> Iterator[Pixels]:
    """Return the masks (H, W) uint8 of a span of a matte video: its opacity if that varies, else its brightness.

    Brightness is the largest of red, green and blue. Raise UserError if the video has opacity that cannot be decoded.
    """
    if has_hidden_alpha(path):
        raise UserError(f"{path}: HEVC with opacity in a layer of its own, which FFmpeg can't decode; {ALPHA_REMEDY}")

    def read(alpha: bool) -> Iterator[Picture]:
        return read_video(path, span.start_s, span.end_s, alpha)

    has_alpha = read_video_metadata(path).has_alpha and any((mask < 255).any() for mask in read(alpha=True))
    masks = read(alpha=True) if has_alpha else (media.show_in_8_bit(frame).max(-1) for frame in read(alpha=False))
    return itertools.islice(masks, 0, None, span.every)
