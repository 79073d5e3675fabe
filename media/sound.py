"""The sound of a video file: a part of it, in step with the pictures that are written."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.filter
from av.audio.stream import AudioStream
from av.container import OutputContainer

from command_line import warn
from media.container import describe, file_start, open_media

BITS_PER_SECOND = 192_000
RATES_HZ = (44100, 48000, 88200, 96000, 32000, 22050)  # AAC knows these; the second one serves for all others.
DEFAULT_RATE_HZ = 48000
LAYOUTS = ("mono", "stereo", "5.1")  # other layouts of loudspeakers are mixed down to two
SAMPLE_FORMAT = "fltp"  # numbers of the encoder of AAC
FRAME_SAMPLES = 1024  # samples of one frame of AAC
SEEK_MARGIN_S = 1.0  # seconds before the wanted sound at which decoding begins


@dataclass(frozen=True)
class Audio:
    """The sound of a part of a video file, in seconds as players count them. Without an end it goes on to the end."""

    source: Path
    start_s: float = 0.0
    end_s: float | None = None
    lead_s: float = 0.0  # seconds by which the sound begins before the first picture
    track: int = 0  # number of the sound track


def find_track(source: Path) -> int | None:
    """Return the number of the first sound track that can be decoded; None, with a warning, if there is none.

    Cameras and phones write tracks that nobody else decodes.
    """
    try:
        with open_media(source) as container:
            count = len(container.streams.audio)
    except av.error.FFmpegError as error:
        warn(f"{source}: cannot be read any more ({describe(error)}), so the edited video is silent")
        return None
    for track in range(count):
        with open_media(source) as container:
            stream = container.streams.audio[track]
            try:
                if stream.codec_context is None or next(container.decode(stream), None) is None:
                    continue
            except av.error.FFmpegError:
                continue
        if track > 0:
            warn(f"{source}: sound track 1 cannot be decoded; track {track + 1} of {count} is taken")
        return track
    if count:
        warn(f"{source}: its sound cannot be decoded, so the edited video is silent")
    return None


class SoundWriter:
    """Writes sound as AAC into a video that is being written; silence follows where the sound ends too early."""

    def __init__(self, audio: Audio, container: OutputContainer):
        self.container, self.audio = container, audio
        with open_media(audio.source) as source:
            template = source.streams.audio[audio.track]
            layout = template.layout.name if template.layout.name in LAYOUTS else LAYOUTS[1]
            rate = template.rate if template.rate in RATES_HZ else DEFAULT_RATE_HZ
        self.stream: AudioStream = container.add_stream("aac", rate=rate, layout=layout, bit_rate=BITS_PER_SECOND)
        self.frames = read_sound(audio, rate, layout)
        self.rate, self.samples = rate, 0

    def write_until(self, time_s: float) -> None:
        """Write sound up to a time in the written video, in seconds."""
        while self.samples < time_s * self.rate:
            frame = next(self.frames)
            # With time stamps the file notes by how much the encoder delays the sound, and players undo that.
            frame.pts, frame.time_base = self.samples, Fraction(1, self.rate)
            self.samples += frame.samples
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds."""
        self.container.mux(self.stream.encode(None))


def read_sound(audio: Audio, rate: int, layout: str) -> Iterator[av.AudioFrame]:
    """Yield the sound of a part of a file in frames of FRAME_SAMPLES, and then silence without end.

    Sound that begins later than the part, and gaps in it, are filled with silence, and so is everything after sound
    that cannot be decoded, with a warning.
    """
    with open_media(audio.source) as container:
        stream = container.streams.audio[audio.track]
        start = audio.start_s + file_start(container)
        end = math.inf if audio.end_s is None else audio.end_s + file_start(container)
        graph = make_sound_graph(rate, layout, start, end)
        try:
            for frame in convert_sound(decode_sound(container, stream, start), rate, layout):
                if frame.time is not None and frame.time >= end:
                    break
                graph.push(frame)
                yield from pull_frames(graph)
        except av.error.FFmpegError as error:
            warn(f"{audio.source}: its sound cannot be decoded further ({describe(error)}); silence follows")
        graph.push(None)
        while True:
            yield from pull_frames(graph)


def convert_sound(frames: Iterable[av.AudioFrame], rate: int, layout: str) -> Iterator[av.AudioFrame]:
    """Yield sound in one format, whatever the frames have: broadcast sound may change from frame to frame."""
    resampler, before = None, None
    for frame in frames:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != before:
            if resampler is not None:
                yield from resampler.resample(None)
            resampler, before = av.AudioResampler(SAMPLE_FORMAT, layout, rate), kind
        assert resampler is not None  # It was made for the first frame.
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)


def make_sound_graph(rate: int, layout: str, start_s: float, end_s: float) -> av.filter.Graph:
    """Return the filters that cut a track between two time stamps, and fill what is missing with silence."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format=SAMPLE_FORMAT, layout=layout, time_base=Fraction(1, rate))
    end = "" if end_s == math.inf else f":end={end_s:.6f}"
    filters = (
        ("atrim", f"start={start_s:.6f}{end}"),
        ("asetpts", f"PTS-{start_s:.6f}/TB"),
        ("aresample", "async=1:first_pts=0"),
        ("apad", ""),
        ("asetnsamples", f"n={FRAME_SAMPLES}"),
    )
    nodes = [graph.add(name, values or None) for name, values in filters]
    graph.link_nodes(source, *nodes, graph.add("abuffersink")).configure()
    return graph


def pull_frames(graph: av.filter.Graph) -> Iterator[av.AudioFrame]:
    """Yield the frames that come out of a filter graph, until it needs more."""
    while True:
        try:
            yield graph.pull()  # type: ignore[misc]  # a graph of sound gives sound
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def decode_sound(
    container: av.container.InputContainer, stream: AudioStream, start_s: float
) -> Iterator[av.AudioFrame]:
    """Yield the decoded frames of a sound track from shortly before a time stamp on. Damaged ones are left out."""
    if start_s > SEEK_MARGIN_S:
        with suppress(av.error.FFmpegError):  # Where no time can be found, reading goes on from the beginning.
            container.seek(math.floor((start_s - SEEK_MARGIN_S) / float(stream.time_base or 1)), stream=stream)
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            continue
