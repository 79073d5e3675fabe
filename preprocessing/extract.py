"""Extract the frames of a video into a folder NAME as upright PNG files, and note their source in NAME.json."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

import media
from command_line import UserError, warn
from media.color import Picture
from media.container import count_frames
from media.decoding import TimedFrame, VideoMetadata, read_frames, read_video_metadata
from parallel.side_by_side import stream_side_by_side
from preprocessing.scene_cuts import SceneCutDetector

MAX_LISTED = 5  # Number of frames that a message lists at most.
TIME_DIGITS = 9  # decimals of the times in a note, in seconds
# Difference up to which the rate that a file states is that of its frames: relative, and in seconds from the first
# frame to the last one, since many files round times to milliseconds.
RATE_TOLERANCE, TIME_TOLERANCE_S = 0.005, 0.002


@dataclass(frozen=True)
class Span:
    """A part of a video, of which every n-th frame is used."""

    start_s: float = 0.0  # seconds
    end_s: float | None = None  # seconds; None is the end of the video
    every: int = 1  # 1 uses all frames, 2 every second frame, and so on
    deinterlace: bool = True  # make whole frames of those that were recorded as two fields

    def name_suffix(self) -> str:
        """Return the suffix that the span adds to the name of a clip; it is empty for the whole video."""
        start = f"_from{self.start_s:g}s" if self.start_s > 0 else ""
        end = "" if self.end_s is None else f"_to{self.end_s:g}s"
        return start + end + (f"_every{self.every}" if self.every > 1 else "")

    def count_frames(self, source: Path, most: int) -> int:
        """Return how many frames of a video the span has; counting stops above `most`."""
        return math.ceil(count_frames(source, self.start_s, self.end_s, most * self.every) / self.every)


@dataclass(frozen=True)
class ClipNote:
    """The content of NAME.json: where the frames of a clip come from.

    The names of the fields are the keys of the file.
    """

    fps: float  # mean number of frames per second of the clip; all videos made of it get this rate
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
    deinterlace: bool = True
    times_s: tuple[float, ...] = ()  # when the video shows each frame, and when the last one ends

    def matches(self, source: Path, span: Span) -> bool:
        """Return whether the frames come from this span of this video file, and the file has not changed since."""
        return Span(self.start_s, self.end_s, self.every, self.deinterlace) == span and self.is_of(source)

    def is_of(self, source: Path) -> bool:
        """Return whether the frames come from this video file, and the file has not changed since."""
        status = source.stat()
        noted_file = (self.source, self.source_bytes, self.source_changed)
        return noted_file == (str(source.resolve()), status.st_size, status.st_mtime)

    def span_after(self, frames: int) -> Span | None:
        """Return the part of the video that follows the first `frames` frames of the clip; None if it is not known."""
        if len(self.times_s) <= frames:
            return None
        last, following = self.times_s[frames - 1 : frames + 1]
        # Half a frame of the video earlier than the next one, because files round times.
        return Span(following - (following - last) / (2 * self.every), None, self.every, self.deinterlace)


class FrameTimes:
    """When the frames of a clip are shown, in seconds of its video."""

    def __init__(self) -> None:
        self.shown_s: list[float] = []
        self.last_duration_s: float | None = None

    def add(self, frame: TimedFrame) -> None:
        """Note the time of the next frame."""
        self.shown_s.append(frame.time_s)
        self.last_duration_s = frame.duration_s

    @property
    def spacing_s(self) -> float:
        """Mean number of seconds between two frames."""
        return (self.shown_s[-1] - self.shown_s[0]) / (len(self.shown_s) - 1)

    @property
    def end_s(self) -> float:
        """When the last frame ends: after its own duration if that is longer than the mean one."""
        return self.shown_s[-1] + max(self.spacing_s, self.last_duration_s or 0.0)

    def find_rate(self, stated: float) -> float:
        """Return the mean number of frames per second: the rate that the file states, if its frames agree with it.

        A stated rate is exact, such as 30000/1001, where time stamps are rounded.
        """
        length = self.shown_s[-1] - self.shown_s[0]
        difference = abs((len(self.shown_s) - 1) / stated - length)
        agrees = difference <= max(RATE_TOLERANCE * length, TIME_TOLERANCE_S)
        return stated if agrees else round(1 / self.spacing_s, TIME_DIGITS)


def clip_note_path(frames: Path) -> Path:
    """Return the path of the note that belongs to a folder of frames."""
    return frames.with_name(f"{frames.name}.json")


def read_clip_note(frames: Path) -> ClipNote | None:
    """Return the note beside a folder of frames, or None if there is none or the file is not such a note."""
    try:
        values = json.loads(clip_note_path(frames).read_text(encoding="utf-8"))
        return ClipNote(**(values | {"times_s": tuple(values.get("times_s", ()))}))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def check_span(source: Path, span: Span, metadata: VideoMetadata) -> None:
    """Raise UserError if the span ends before it starts, or holds no frame."""
    if span.end_s is not None and span.end_s <= span.start_s:
        raise UserError(f"--end {span.end_s:g} lies before --start {span.start_s:g}; give a later --end")
    if span.count_frames(source, 1) == 0:
        length = "ends earlier" if metadata.duration_s is None else f"is {metadata.duration_s:.2f} s long"
        end = "" if span.end_s is None else f" --end {span.end_s:g}"
        raise UserError(f"--start {span.start_s:g}{end}: {source} {length} and shows no frame then; give another part")


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
    detector, times = SceneCutDetector(), FrameTimes()
    try:
        frames = check_frames(read_span(source, span, max_frames), source, detector, max_frames, times)
        sizes = list(stream_side_by_side(lambda item: write_frame(unfinished, *item), enumerate(frames)))
        if detector.count < 2:
            raise UserError(f"{source}: {detector.count} frame in this part; at least 2 are needed to follow a motion")
        check_cuts(detector, source, allow_cuts, lambda t: f"{(times.shown_s[t - 1] + times.shown_s[t]) / 2:.3f}")
        status = source.stat()
        note = ClipNote(
            fps=times.find_rate(metadata.fps / span.every),
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
            deinterlace=span.deinterlace,
            times_s=tuple(round(time, TIME_DIGITS) for time in (*times.shown_s, times.end_s)),
        )
        media.write_text(clip_note_path(folder), json.dumps(asdict(note), indent=2) + "\n")
        if folder.is_dir():  # An empty folder of this name is replaced.
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return note


def check_frames(
    frames: Iterable[TimedFrame], source: Path, detector: SceneCutDetector, max_frames: int, times: FrameTimes
) -> Iterator[Picture]:
    """Yield the pictures (H, W, 3) of frames while scene cuts are looked for and times are noted.

    Raise UserError after max_frames frames.
    """
    for number, frame in enumerate(frames):
        if number >= max_frames:
            raise UserError(too_many_frames_message(source, f"more than {max_frames}", max_frames))
        detector.add_frame(media.show_in_8_bit(frame.pixels))
        times.add(frame)
        yield frame.pixels


def write_frame(folder: Path, number: int, frame: Picture) -> tuple[int, int]:
    """Write a frame (H, W, 3) as a PNG that is named after its number, and return (W, H)."""
    media.write_png(folder / f"{number:05d}.png", frame)
    return frame.shape[1], frame.shape[0]


def too_many_frames_message(source: Path, count: str, max_frames: int) -> str:
    """Return the message about a clip that has more frames than --max_frames allows."""
    return (
        f"{source} has {count} frames here, --max_frames is {max_frames}; take a part with --start and --end, every "
        "second frame with --every 2, or allow more"
    )


def read_span(source: Path, span: Span, max_frames: int) -> Iterator[TimedFrame]:
    """Yield the frames of a span of a video, and show a progress bar."""
    frames = read_frames(source, span.start_s, span.end_s, deinterlace=span.deinterlace)
    chosen = itertools.islice(frames, 0, None, span.every)
    return iter(tqdm(chosen, total=span.count_frames(source, max_frames), desc="frames", unit="frame"))


def check_cuts(
    detector: SceneCutDetector, source: Path, allow_cuts: bool, format_time: Callable[[int], str] | None
) -> None:
    """Raise UserError for a clip with a scene cut, unless cuts are allowed, and for a clip of empty frames only.

    An allowed cut, and empty frames among others, are only warned about.

    format_time: returns the time of a cut before frame t as text, in seconds; None if the source is a folder of frames.
    """
    if detector.cuts:
        first, count = detector.cuts[0], len(detector.cuts)
        others = detector.cuts[1:] if format_time is None else [f"{format_time(cut)} s" for cut in detector.cuts[1:]]
        place = "before frames" if format_time is None else "at"
        more = f" (and {count - 1} more, {place} {list_some(others)})" if count > 1 else ""
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
        names = list_some(detector.empty)
        warn(f"{source}: {len(detector.empty)} frames are of a single colour ({names}); better leave them out")


def list_some(items: Sequence[object]) -> str:
    """Return items as text, MAX_LISTED of them at most."""
    return ", ".join(map(str, items[:MAX_LISTED])) + (", ..." if len(items) > MAX_LISTED else "")
