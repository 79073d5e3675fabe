"""Frames out of a video file, upright and lossless, with a note of where they come from: NAME/00000.png, NAME.json."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

import media
from command_line import UserError, warn
from media import Pixels
from media.decoding import VideoFacts, read_video, video_facts
from preprocessing.scene_cuts import SceneCutDetector

LISTED = 5  # frames that a message names


@dataclass(frozen=True)
class Span:
    """Which part of a video."""

    start_s: float = 0.0
    end_s: float | None = None
    every: int = 1  # frames: every second, third, ...

    def name_suffix(self) -> str:
        """For names: nothing for the whole video."""
        start = f"_from{self.start_s:g}s" if self.start_s > 0 else ""
        end = "" if self.end_s is None else f"_to{self.end_s:g}s"
        return start + end + (f"_every{self.every}" if self.every > 1 else "")

    def frames(self, facts: VideoFacts) -> int | None:
        """About how many frames of a video lie in the span; None if the video does not say how long it is."""
        end = self.end_s if self.end_s is not None else facts.duration_s
        if end is None:
            return None
        if facts.duration_s is not None:
            end = min(end, facts.duration_s)
        return max(0, round((end - self.start_s) * facts.fps / self.every))


@dataclass(frozen=True)
class ClipNote:
    """Where frames come from; NAME.json. `fps` is what everything that writes videos reads."""

    fps: float
    source: str
    start_s: float
    end_s: float | None
    every: int
    frames: int
    width: int
    height: int
    has_audio: bool
    source_bytes: int
    source_changed: float  # seconds

    def matches(self, source: Path, span: Span) -> bool:
        """Whether these are the frames of a part of a video."""
        here = source.stat()
        mine = (self.source, self.start_s, self.end_s, self.every, self.source_bytes, self.source_changed)
        return mine == (
            str(source.resolve()),
            span.start_s,
            span.end_s,
            span.every,
            here.st_size,
            here.st_mtime,
        )


def clip_note_path(frames: Path) -> Path:
    """Where the note of a frames' folder lies."""
    return frames.with_name(f"{frames.name}.json")


def read_clip_note(frames: Path) -> ClipNote | None:
    """The note beside a frames' folder; None if there is none, or one that somebody else wrote."""
    try:
        return ClipNote(**json.loads(clip_note_path(frames).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def check_span(source: Path, span: Span, facts: VideoFacts) -> None:
    """Raise UserError for a part that the video does not have."""
    if span.end_s is not None and span.end_s <= span.start_s:
        raise UserError(f"--end {span.end_s:g} lies before --start {span.start_s:g}")
    if facts.duration_s is not None and span.start_s >= facts.duration_s:
        raise UserError(f"--start {span.start_s:g}: {source} is {facts.duration_s:g} s long")


def extract(source: Path, folder: Path, span: Span, allow_cuts: bool, max_frames: int) -> ClipNote:
    """Write the frames of a part of a video into a new folder, all or none, and the note beside it.

    Raises UserError if there are fewer than two or more than max_frames, or a scene cut unless that is allowed.
    """
    if clip_note_path(folder).exists() and read_clip_note(folder) is None:
        raise UserError(
            f"{clip_note_path(folder)} is there and says something else; move it away, or give another --name"
        )
    facts = video_facts(source)
    check_span(source, span, facts)
    unfinished = folder.with_name(f".{folder.name}_unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    watcher, size = SceneCutDetector(), (facts.width, facts.height)
    try:
        for number, frame in enumerate(read_frames(source, span, facts)):
            if number >= max_frames:
                raise UserError(too_many_frames(source, f"more than {max_frames}", max_frames))
            watcher.add_frame(frame)
            size = frame.shape[1::-1]
            media.write_png(unfinished / f"{number:05d}.png", frame)
        if watcher.count < 2:
            raise UserError(f"{source}: {watcher.count} frame in this part; at least 2 are needed to follow a motion")
        fps = facts.fps / span.every
        check_cuts(watcher, source, allow_cuts, lambda t: f"{span.start_s + (t - 0.5) / fps:.3f}")
        here = source.stat()
        part = (str(source.resolve()), span.start_s, span.end_s, span.every)
        note = ClipNote(fps, *part, watcher.count, *size, facts.has_audio, here.st_size, here.st_mtime)
        media.write_text(clip_note_path(folder), json.dumps(asdict(note), indent=2) + "\n")
        if folder.is_dir():  # empty
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return note


def too_many_frames(source: Path, count: str, max_frames: int) -> str:
    """What to tell about a clip that is longer than anyone would wait for."""
    return (
        f"{source} has {count} frames here, --max_frames is {max_frames}; take a part with --start and --end, every "
        "second frame with --every 2, or allow more"
    )


def read_frames(source: Path, span: Span, facts: VideoFacts) -> Iterator[Pixels]:
    """Every so many frames of a part of a video, at a constant rate, with a progress bar."""
    rate = facts.fps if facts.is_variable else None
    frames = read_video(source, span.start_s, span.end_s, rate)
    chosen = (frame for number, frame in enumerate(frames) if number % span.every == 0)
    return iter(tqdm(chosen, total=span.frames(facts), desc="frames", unit="frame"))


def check_cuts(watcher: SceneCutDetector, source: Path, allow_cuts: bool, time_of: Callable[[int], str] | None) -> None:
    """Raise UserError naming the first scene cut; warn of frames that show nothing.

    time_of: a frame's seconds into the video, as text; None for a folder of frames.
    """
    if watcher.cuts:
        first, count = watcher.cuts[0], len(watcher.cuts)
        more = f" (and {count - 1} more)" if count > 1 else ""
        if time_of is None:
            split = f"put frames 0 to {first - 1} and those from {first} on into folders of their own"
        else:
            split = f"take one scene at a time: --end {time_of(first)} or --start {time_of(first)}"
        if not allow_cuts:
            raise UserError(
                f"{source}: a scene cut between frames {first - 1} and {first}{more}; {split}, "
                "or train over it with --allow_cuts"
            )
        warn(f"{source}: a scene cut between frames {first - 1} and {first}{more}; it is trained over, as asked")
    if watcher.empty:
        listed = ", ".join(map(str, watcher.empty[:LISTED])) + (", ..." if len(watcher.empty) > LISTED else "")
        if len(watcher.empty) == watcher.count:
            raise UserError(f"{source}: every frame is of a single colour, nothing can be followed; give another video")
        warn(f"{source}: {len(watcher.empty)} frames are of a single colour ({listed}); better leave them out")
