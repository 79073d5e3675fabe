"""Frames that follow a clip: a clip with all of them, and masks of the new ones, carried on along the flow."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

import media
from command_line import UserError, resolve_folder_name, warn
from grids.unwrap import fill_unknown
from masks.provenance import are_found, read_mask_note, read_mask_request, write_mask_note
from media import Pixels
from media.clip import Clip, mask_suffixes
from media.flows import BACKWARD, FORWARD
from preprocessing.extract import ClipNote, Span, extract_frames, read_clip_note
from preprocessing.mask_files import frames_without_mask, write_mask_files
from preprocessing.mask_import import read_masks
from preprocessing.mask_refinement import refine_small_masks
from preprocessing.scene_cuts import LONG_EDGE_PX, SceneCutDetector, resize_longer_side
from preprocessing.small_video import open_small_clip, read_small_video
from rendering.frames import render_frame
from rendering.trained_run import TrainedRun
from unwrap_utils import warp_by_flow

KNOWN_FRAMES = 24  # Most frames with known masks that teach how an object looks.
CARRIED_FRAMES = 10  # New frames that are refined together.
MOST_GROWTH = 1.3  # Change of an object's area from which on the user is told to look at its masks.
MIN_CUE_SCORE = -6.0  # Masks that are moved from frame to frame are no independent witnesses, so cues may overrule all.
# Pixels as far as this from the outline are the core of an object, whose flow is its own; as a share of the long edge.
CORE_DISTANCE = 1 / 120
# The first new frame repeats the clip's first one if they differ by less than so many grey levels in the mean, and the
# clip's last frame by so many times as much. In a shot that stands still no frame repeats another by this rule.
SAME_PICTURE, MOVED_ON = 2.0, 3.0
LEAST_CORE_PX = 30  # Fewest pixels of a core from which the flow is continued.


def join_new_frames(
    clip: Clip,
    source: Path,
    max_frames: int,
    start_s: float | None = None,
    end_s: float | None = None,
    allow_cuts: bool = False,
) -> Path:
    """Return the folder of a clip with new frames after its own.

    source: a video, or a folder of frames. If it is the clip's own folder, the new frames are those that the clip left
    out, and nothing is copied. Otherwise the clip's frames, masks and flow, and the new frames, go to a new folder
    beside the clip, as links where possible. start_s, end_s: the part of a video, see `choose_span`. Raises UserError
    if there are no new frames, if they have another size, or if they show another scene and allow_cuts is False.
    """
    if source.is_dir() and (start_s, end_s) != (None, None):
        raise UserError(f"{source}: --start and --end are for videos; give a folder that holds the new frames alone")
    if source.is_dir() and resolve_folder_name(source).samefile(clip.folder):
        count = len(media.list_images(clip.folder)) - len(clip)
        if count <= 0:
            raise UserError(f"{source}: the run has all of its {len(clip)} frames already; give the frames that follow")
        check_count(source, count, max_frames)
        return clip.folder
    if source.is_dir():
        return join_folder(clip, resolve_folder_name(source), max_frames, allow_cuts)
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder; give the frames that follow, as a folder or a video")
    span = choose_span(clip, source, start_s, end_s)
    check_count(source, span.count_frames(source, max_frames + 1), max_frames)
    with tempfile.TemporaryDirectory(dir=clip.folder.parent, prefix=".new_frames_") as scratch:
        frames = Path(scratch) / "frames"
        note = extract_frames(source, frames, span, allow_cuts, max_frames)
        return join_folder(clip, frames, max_frames, allow_cuts, note)


def choose_span(clip: Clip, source: Path, start_s: float | None, end_s: float | None) -> Span:
    """Return the part of a video whose frames are added to a clip.

    start_s, end_s: seconds of the video; None is its beginning and its end. But if the clip is a part of this video,
    its next frames are taken, and as it took them: every second frame, for instance. Raises UserError if it has none.
    """
    note = read_clip_note(clip.folder)
    if note is None or not note.is_of(source):
        return Span(start_s or 0.0, end_s)
    if start_s is not None:
        return Span(start_s, end_s, note.every, note.deinterlace)
    following = note.span_after(len(clip))
    if following is None:
        raise UserError(f"{source}: it is not noted where the run's last frame lies in it; give --start SECONDS")
    if following.count_frames(source, 1) == 0:
        raise UserError(f"{source}: the run has all of its frames already; give the frames that follow")
    if end_s is not None and end_s <= following.start_s:
        raise UserError(f"--end {end_s:g}: the run's last frame lies at {following.start_s:.2f} s; give a later --end")
    print(f"the run was made from this video; the new frames are those after {following.start_s:.2f} s")
    return replace(following, end_s=end_s)


def check_first_frame(clip: Clip, first: Path, allow_cuts: bool) -> None:
    """Raise UserError if the first new frame shows another scene than the last frame of a clip, unless that is allowed.

    Also warn if it repeats the first frame of the clip.
    """
    new = media.resize(media.read_rgb(first), clip.width, clip.height)
    begin, end = clip.frame(0), clip.frame(len(clip) - 1)
    small = [resize_longer_side(frame, LONG_EDGE_PX).astype(np.float32) for frame in (new, begin, end)]
    from_begin, from_end = (float(np.abs(small[0] - other).mean()) for other in small[1:])
    if from_begin < SAME_PICTURE and from_end > MOVED_ON * from_begin:
        warn(
            f"--frames: the first picture, {first.name}, looks like the first frame of the run, not like what follows "
            "its last one; if the run has these frames already, stop with Ctrl-C and give those that follow, of a "
            "video with --start SECONDS"
        )
        return
    detector = SceneCutDetector()
    for frame in (end, new):
        detector.add_frame(frame)
    if not detector.cuts:
        return
    cut = f"--frames: the first picture, {first.name}, shows another scene than the last frame of the run"
    if not allow_cuts:
        raise UserError(f"{cut}; unwrap it as a clip of its own, or extend the run by it with --allow_cuts")
    warn(f"{cut}; it is accepted because of --allow_cuts")


def join_folder(
    clip: Clip, new_folder: Path, max_frames: int, allow_cuts: bool, new_note: ClipNote | None = None
) -> Path:
    """Write the folder of a clip with the frames of another folder after its own; see `join_new_frames`.

    new_note: of the new frames, if they come from a video.
    """
    new = media.list_images(new_folder)
    if not new:
        raise UserError(media.explain_empty_folder(new_folder))
    check_count(new_folder, len(new), max_frames)
    for path in new:
        if (size := media.image_size(path)) != clip.native_size:
            raise UserError(
                f"{path} is {size[0]} x {size[1]}, the frames of the run are {clip.native_size[0]} x "
                f"{clip.native_size[1]}; new frames must have the same size"
            )
    check_first_frame(clip, new[0], allow_cuts)
    folder = choose_folder(clip)
    names = continue_names([path.stem for path in clip.frame_paths], len(new))
    for path in clip.frame_paths:
        link_or_copy(path, folder / path.name)
    for path, name in zip(new, names, strict=True):
        link_or_copy(path, folder / f"{name}{path.suffix}")
    for suffix in ("_flow", *mask_suffixes(clip.objects)):
        folder.with_name(folder.name + suffix).mkdir(parents=True)
    for t in range(len(clip) - 1):  # Flow to frames that the clip leaves out would be that of other pictures.
        for frame, direction in ((t, FORWARD), (t + 1, BACKWARD)):
            path = clip.flow_path(frame, direction)
            link_or_copy(path, folder.with_name(f"{folder.name}_flow") / path.name)
    for suffix, paths in zip(mask_suffixes(clip.objects), clip.object_masks, strict=True):
        target, given = folder.with_name(folder.name + suffix), new_folder.with_name(new_folder.name + suffix)
        for path in paths:
            shutil.copyfile(path, target / path.name)  # not linked, because somebody may paint on masks
        for path, name in zip(new, names, strict=True) if given.is_dir() else ():
            if (mask := given / f"{path.stem}.png").is_file():
                shutil.copyfile(mask, target / f"{name}.png")
    write_clip_note(clip, folder, len(clip) + len(new), new_note)
    print(f"wrote a clip of {len(clip)} + {len(new)} frames: {folder}")
    return folder


def remove_joined_frames(clip: Clip, extended: Clip) -> None:
    """Remove the folders that `join_new_frames` has made for an extended clip, because they cannot be used."""
    if extended.folder == clip.folder:
        return
    for suffix in ("", "_flow", *mask_suffixes(clip.objects)):
        shutil.rmtree(extended.sibling_folder(suffix), ignore_errors=True)
    extended.folder.with_name(f"{extended.name}.json").unlink(missing_ok=True)


def check_count(source: Path, count: int, max_frames: int) -> None:
    """Raise UserError if there are more new frames than are allowed."""
    if count > max_frames:
        raise UserError(
            f"{source} has {count} new frames or more, --max_frames is {max_frames}; give fewer, or allow more"
        )


def choose_folder(clip: Clip) -> Path:
    """Make the folder for the frames of an extended clip, with a name that nothing beside it uses."""
    base, number = clip.folder.with_name(f"{clip.name}_extended"), 1
    folder = base
    while any(
        path.name == folder.name or path.name.startswith((f"{folder.name}_", f"{folder.name}."))
        for path in base.parent.iterdir()
    ):
        number += 1
        folder = base.with_name(f"{base.name}{number}")
    folder.mkdir()
    return folder


def write_clip_note(clip: Clip, folder: Path, frames: int, new_note: ClipNote | None) -> None:
    """Write the note beside the frames of an extended clip: what is known of the clip, for all of its frames.

    new_note: of the new frames, if they come from a video. If it is the clip's own video, the times of the new frames
    are kept, so that the clip can be extended by it once more. Otherwise, if the frames of the clip are spaced
    unevenly, the new ones follow at its mean distance.
    """
    note_path = clip.folder.with_name(f"{clip.name}.json")
    note = json.loads(note_path.read_text(encoding="utf-8")) if note_path.is_file() else {}
    old_note = read_clip_note(clip.folder)
    if old_note is not None and new_note is not None and old_note.is_of(Path(new_note.source)):
        times = [*old_note.times_s[: len(clip)], *new_note.times_s] if len(old_note.times_s) > len(clip) else []
        note["end_s"] = new_note.end_s
    else:
        times = list(clip.times_s)
        times += [times[-1] + number / clip.fps for number in range(1, frames - len(clip) + 1)] if times else []
        if "source_bytes" in note:
            note["source_bytes"] = 0  # The last frames are not of this file, so it is not known what follows them.
    note |= {"fps": clip.fps, "frames": frames, "times_s": times}
    media.write_text(folder.with_name(f"{folder.name}.json"), json.dumps(note) + "\n")


def continue_names(stems: Sequence[str], count: int) -> list[str]:
    """Return names for frames that follow frames with these names, in their order."""
    number = re.search(r"\d+$", stems[-1])
    if number is None:
        return [f"{stems[-1]}_{index:05d}" for index in range(1, count + 1)]
    prefix, digits = stems[-1][: number.start()], number.group()
    return [f"{prefix}{int(digits) + index:0{len(digits)}d}" for index in range(1, count + 1)]


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_new_masks(run: TrainedRun, clip: Clip, given: Path | None) -> list[str]:
    """Write the masks that the new frames of a clip lack.

    Returns for each object where its new masks come from, see `masks.provenance.SOURCES`. clip: the clip of the run,
    with more frames. given: masks of the new frames, a folder or a video. Without them, and where there are none, the
    objects are followed from the last frames of the run. Raises UserError if the given masks cannot be used.
    """
    sources: list[str] = []
    carrier: MaskCarrier | None = None
    new, base = list(clip.frame_paths[len(run.clip) :]), clip.sibling_folder("_maskrcnn")
    for index, suffix in enumerate(mask_suffixes(clip.objects)):
        folder = media.make_folder(clip.sibling_folder(suffix))
        missing = frames_without_mask(new, folder)
        if given is not None:
            if len(missing) < len(new):
                raise UserError(f"{folder} has masks of the new frames already; leave --masks out, or move them away")
            sources.append("brought")
            write_mask_files(new, read_masks(given, new), folder)
        elif not missing:
            sources.append("unknown")
        else:
            # Where some masks are somebody's own, all of the object's are treated as those of the run were.
            sources.append("found" if len(missing) == len(new) else "unknown")
            carrier, were_found = carrier or MaskCarrier(run, clip), are_found(base, folder)
            chosen = set(missing)
            masks = (mask for path, mask in zip(new, carrier.follow(index), strict=True) if path in chosen)
            write_mask_files(missing, masks, folder)
            if were_found:  # They still are, with the new ones beside them.
                others = {name: value for name, value in read_mask_note(base).items() if name not in ("asked", "found")}
                write_mask_note(base, read_mask_request(base) or {}, [folder], others)
    return sources


class MaskCarrier:
    """Follows the objects of a run through the frames after it, at the reduced size of a small video.

    Masks that are moved along the flow alone grow, because flow smears the outline at every step. So a few frames at a
    time are refined together with the frames before, whose masks are right and teach what the object looks like.
    """

    def __init__(self, run: TrainedRun, clip: Clip):
        """clip: the clip of the run, with more frames."""
        trained = len(run.clip)
        self.first, self.known = max(0, trained - KNOWN_FRAMES), min(trained, KNOWN_FRAMES)
        small = open_small_clip(clip.folder)
        self.frame_paths = clip.frame_paths[self.first :]
        self.video = read_small_video(replace(small, frame_paths=self.frame_paths))
        size = small.width, small.height
        self.known_alpha = np.stack(
            [
                render_frame(run.model, run.clip, t, full_range=True, with_colors=False, output_size=size).alpha
                for t in range(self.first, trained)
            ]
        )  # (known, F, h, w)

    def follow(self, index: int) -> Iterator[Pixels]:
        """Yield the masks (H, W) uint8 of an object in the new frames, at the size of the frames' files."""
        frames = self.video.size[0]
        masks = np.zeros(self.video.size, np.uint8)
        masks[: self.known] = media.to_8_bit(self.known_alpha[:, index])
        for begin in range(self.known, frames, CARRIED_FRAMES):
            end, start = min(frames, begin + CARRIED_FRAMES), max(0, begin - KNOWN_FRAMES)
            for t in range(begin, end):
                masks[t] = self.move_mask(masks[t - 1], t)
            refined = refine_small_masks(self.video.part(start, end), masks[start:end], MIN_CUE_SCORE)
            for t in range(begin, end):
                masks[t] = refined.mask(self.video.frames[t].numpy(), t - start)
                yield refined.mask(media.read_rgb(self.frame_paths[t]), t - start)
        growth = float((masks[-1] > 127).sum() / max((masks[self.known - 1] > 127).sum(), 1))
        if not 1 / MOST_GROWTH < growth < MOST_GROWTH:
            warn(
                f"the followed object covers {growth:.1f} times as much of the last frame as of the last trained one; "
                f"look at its masks beside {self.frame_paths[0].parent}, and bring --masks if they are wrong"
            )

    def move_mask(self, mask: Pixels, t: int) -> Pixels:
        """Return the mask (h, w) of frame t - 1 in frame t; what comes into view is not the object's.

        A background that an object slowly uncovers seems to come out of the object, by its own flow. It does not by the
        flow of the object, continued from inside of it, so a pixel must come from the mask by both.
        """
        flow = self.video.flow_steps[BACKWARD, t].numpy() * self.video.flow_unit_px[BACKWARD, t].numpy()
        is_valid = self.video.flow_valid[BACKWARD, t].numpy()
        moved = (warp_by_flow(mask, flow) > 127) & is_valid
        side = 2 * max(1, round(CORE_DISTANCE * max(mask.shape))) + 1
        core = (cv2.erode(moved.astype(np.uint8), np.ones((side, side), np.uint8)) > 0) & is_valid
        if core.sum() >= LEAST_CORE_PX:
            known = torch.from_numpy(core)[None, None].float()
            continued = fill_unknown(torch.from_numpy(flow).permute(2, 0, 1)[None], known)[0].permute(1, 2, 0)
            moved &= warp_by_flow(mask, continued.contiguous().numpy()) > 127
        return np.where(moved, 255, 0).astype(np.uint8)
