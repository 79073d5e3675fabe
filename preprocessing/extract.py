"""Extract the frames of a video into a folder NAME as upright PNG files, and note their source in NAME.json."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

import media
from command_line import UserError, warn
from media import Pixels
from media.decoding import VideoMetadata, read_video, read_video_metadata
from parallel.side_by_side import stream_side_by_side
from preprocessing.scene_cuts import SceneCutDetector

MAX_LISTED = 5  # Number of frames that a message lists at most.


@dataclass(frozen=True)
class Span:
    """A part of a video, of which every n-th frame is used."""

    start_s: float = 0.0  # seconds
    end_s: float | None = None  # seconds; None is the end of the video
    every: int = 1  # 1 uses all frames, 2 every second frame, and so on

    def name_suffix(self) -> str:
        """Return the suffix that the span adds to the name of a clip; it is empty for the whole video."""
        start = f"_from{self.start_s:g}s" if self.start_s > 0 else ""
        end = "" if self.end_s is None else f"_to{self.end_s:g}s"
        return start + end + (f"_every{self.every}" if self.every > 1 else "")

    def count_frames(self, metadata: VideoMetadata) -> int | None:
        """Return about how many frames of a video the span has, or None if the length of the video is not known."""
        end = self.end_s if self.end_s is not None else metadata.duration_s
        if end is None:
            return None
        if metadata.duration_s is not None:
            end = min(end, metadata.duration_s)
        return max(0, round((end - self.start_s) * metadata.fps / self.every))


@dataclass(frozen=True)
class ClipNote:
    """The content of NAME.json: where the frames of a clip come from.

    The names of the fields are the keys of the file.
    """

    fps: float  # frames per second of the clip; all videos made of it get this rate
    source: str  # path of the video
    start_s: float
    end_s: float | None
    every: int
    frames: int
    width: int
    height: int
    has_audio: bool
    source_bytes: int  # size of the video file
    source_changed: float  # when the video file was last changed, seconds since 1970

    def matches(self, source: Path, span: Span) -> bool:
        """Return whether the frames come from this span of this video file, and the file has not changed since."""
        status = source.stat()
        noted = (self.source, self.start_s, self.end_s, self.every, self.source_bytes, self.source_changed)
        return noted == (
            str(source.resolve()),
            span.start_s,
            span.end_s,
            span.every,
            status.st_size,
            status.st_mtime,
        )


def clip_note_path(frames: Path) -> Path:
    """Return the path of the note that belongs to a folder of frames."""
    return frames.with_name(f"{frames.name}.json")


def read_clip_note(frames: Path) -> ClipNote | None:
    """Return the note beside a folder of frames, or None if there is none or the file is not such a note."""
    try:
        return ClipNote(**json.loads(clip_note_path(frames).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def check_span(source: Path, span: Span, metadata: VideoMetadata) -> None:
    """Raise UserError if the span ends before it starts, or starts after the end of the video."""
    if span.end_s is not None and span.end_s <= span.start_s:
        raise UserError(f"--end {span.end_s:g} lies before --start {span.start_s:g}; give a later --end")
    if metadata.duration_s is not None and span.start_s >= metadata.duration_s:
        raise UserError(
            f"--start {span.start_s:g}: {source} is {metadata.duration_s:g} s long; give an earlier --start"
        )


def extract_frames(source: Path, folder: Path, span: Span, allow_cuts: bool, max_frames: int) -> ClipNote:
    """Write the frames of a span of a video into a new folder, and the note beside it. Return the note.

    Either all frames are written or none. Raise UserError if there are fewer than two frames or more than max_frames,
    if there is a scene cut and allow_cuts is False, or if a file that is not a clip note has the name of the note.
    """
    if clip_note_path(folder).exists() and read_clip_note(folder) is None:
        raise UserError(
            f"{clip_note_path(folder)} exists and is not a note about extracted frames; "
            "move it away, or give another --name"
        )
    metadata = read_video_metadata(source)
    check_span(source, span, metadata)
    unfinished = folder.with_name(f".{folder.name}_unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    detector = SceneCutDetector()
    try:
        frames = check_frames(read_span(source, span, metadata), source, detector, max_frames)
        sizes = list(stream_side_by_side(lambda item: write_frame(unfinished, *item), enumerate(frames)))
        if detector.count < 2:
            raise UserError(f"{source}: {detector.count} frame in this part; at least 2 are needed to follow a motion")
        fps = metadata.fps / span.every
        check_cuts(detector, source, allow_cuts, lambda t: f"{span.start_s + (t - 0.5) / fps:.3f}")
        status = source.stat()
        note = ClipNote(
            fps=fps,
            source=str(source.resolve()),
            start_s=span.start_s,
            end_s=span.end_s,
            every=span.every,
            frames=detector.count,
            width=sizes[0][0],
            height=sizes[0][1],
            has_audio=metadata.has_audio,
            source_bytes=status.st_size,
            source_changed=status.st_mtime,
        )
        media.write_text(clip_note_path(folder), json.dumps(asdict(note), indent=2) + "\n")
        if folder.is_dir():  # An empty folder of this name is replaced.
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return note


def check_frames(
    frames: Iterable[Pixels], source: Path, detector: SceneCutDetector, max_frames: int
) -> Iterator[Pixels]:
    """Yield frames (H, W, 3) while the detector looks for scene cuts. Raise UserError after max_frames frames."""
    for number, frame in enumerate(frames):
        if number >= max_frames:
            raise UserError(too_many_frames_message(source, f"more than {max_frames}", max_frames))
        detector.add_frame(frame)
        yield frame


def write_frame(folder: Path, number: int, frame: Pixels) -> tuple[int, int]:
    """Write a frame (H, W, 3) as a PNG that is named after its number, and return (W, H)."""
    media.write_png(folder / f"{number:05d}.png", frame)
    return frame.shape[1], frame.shape[0]


def too_many_frames_message(source: Path, count: str, max_frames: int) -> str:
    """Return the message about a clip that has more frames than --max_frames allows."""
    return (
        f"{source} has {count} frames here, --max_frames is {max_frames}; take a part with --start and --end, every "
        "second frame with --every 2, or allow more"
    )


def read_span(source: Path, span: Span, metadata: VideoMetadata) -> Iterator[Pixels]:
    """Yield the frames (H, W, 3) of a span of a video at a constant rate, and show a progress bar."""
    rate = metadata.fps if metadata.is_variable else None
    frames = read_video(source, span.start_s, span.end_s, rate)
    chosen = (frame for number, frame in enumerate(frames) if number % span.every == 0)
    return iter(tqdm(chosen, total=span.count_frames(metadata), desc="frames", unit="frame"))


def check_cuts(
    detector: SceneCutDetector, source: Path, allow_cuts: bool, format_time: Callable[[int], str] | None
) -> None:
    """Raise UserError for a clip with a scene cut, unless cuts are allowed, and for a clip of empty frames only.

    An allowed cut, and empty frames among others, are only warned about.

    format_time: returns the time of a cut before frame t as text, in seconds; None if the source is a folder of frames.
    """
    if detector.cuts:
        first, count = detector.cuts[0], len(detector.cuts)
        more = f" (and {count - 1} more)" if count > 1 else ""
        if format_time is None:
            advice = f"put frames 0 to {first - 1} and those from {first} on into folders of their own"
        else:
            advice = f"take one scene at a time: --end {format_time(first)} or --start {format_time(first)}"
        cut = f"{source}: a scene cut between frames {first - 1} and {first}{more}"
        if not allow_cuts:
            raise UserError(f"{cut}; {advice}, or train over it with --allow_cuts")
        warn(f"{cut}; it is trained over because of --allow_cuts")
    if detector.empty:
        if len(detector.empty) == detector.count:
            raise UserError(f"{source}: every frame is of a single colour, nothing can be followed; give another video")
        names = ", ".join(map(str, detector.empty[:MAX_LISTED])) + (", ..." if len(detector.empty) > MAX_LISTED else "")
        warn(f"{source}: {len(detector.empty)} frames are of a single colour ({names}); better leave them out")
