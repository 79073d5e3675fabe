"""Videos as people bring them: recordings of screens and calls, phones, cameras, broadcasts, and words that mislead."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import ffmpeg

import media
from command_line import UserError
from config import Config
from media.clip import open_clip
from media.container import count_frames
from media.decoding import read_frames, read_video, read_video_metadata
from media.sound import Audio, find_track
from media.videos import VideoWriter, count_ticks
from preprocessing.extract import Span, extract_frames
from preprocessing.mask_import import read_masks
from scenes.catalogue import SCENES

X264 = ["-c:v", "libx264", "-crf", 12, "-pix_fmt", "yuv420p"]
JITTER = r"settb=1/1000,setpts='N/30/TB+mod(N*7\,5)*0.003/TB'"  # seconds by which a recording's frames come late
UNEVEN_FLAGS = ["-fps_mode", "passthrough", "-enc_time_base", "1/1000"]
BARS = [(235, 235, 235), (200, 40, 40), (40, 180, 60), (40, 60, 200), (16, 16, 16), (200, 200, 40), (190, 60, 190)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder with 24 frames of 64 x 48 pixels, for ffmpeg."""
    folder, scene = tmp_path_factory.mktemp("pictures"), SCENES["pan"](64, 48, 24)
    for t in range(24):
        media.write_png(folder / f"{t}.png", scene.frame(t).rgb)
    return folder


@pytest.fixture(scope="module")
def cut_outs(tmp_path_factory):
    """Folder with eight pictures of a moving disc with opacity, for ffmpeg."""
    folder = tmp_path_factory.mktemp("cut_outs")
    rows, columns = np.mgrid[:96, :128]
    for t in range(8):
        is_inside = (columns - 32 - 6 * t) ** 2 + (rows - 48) ** 2 < 300
        picture = np.dstack((np.full((96, 128, 3), 90), np.where(is_inside, 255, 0))).astype(np.uint8)
        media.write_png(folder / f"{t}.png", picture)
    return folder


def draw_bars(width: int, height: int) -> np.ndarray:
    """Return a picture of upright bars in the colours of BARS."""
    return np.repeat(np.array(BARS, np.uint8)[None], height, 0).repeat(-(-width // len(BARS)), 1)[:, :width]


def read_bars(picture: np.ndarray) -> np.ndarray:
    """Return the colour in the middle of each bar."""
    width = -(-picture.shape[1] // len(BARS))
    return picture[picture.shape[0] // 2, width // 2 :: width].astype(int)


def source_flags(folder, fps=25, count=8) -> list:
    """Return ffmpeg's flags for the first pictures of a folder."""
    return ["-framerate", fps, "-i", folder / "%d.png", "-frames:v", count]


def extract(source, folder, **span):
    """Extract the frames of a video; return the note and the frames."""
    note = extract_frames(source, folder, Span(**span), allow_cuts=True, max_frames=500)
    return note, [media.read_rgb(path) for path in media.list_images(folder)]


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", X264), ("a.webm", ["-c:v", "libvpx"]), ("a.flv", [])])
def test_a_recording_without_a_rate_gives_every_frame_once_at_its_own_time(pictures, tmp_path, name, codec):
    source = ["-framerate", 30, "-i", pictures / "%d.png", "-vf", JITTER]
    ffmpeg(*source, *UNEVEN_FLAGS, *codec, tmp_path / name)
    note, frames = extract(tmp_path / name, tmp_path / "clip")
    assert len(frames) == note.frames == count_frames(tmp_path / name, 0, None, 500) == 24
    expected = [t / 30 + 0.003 * (7 * t % 5) for t in range(24)]
    assert note.times_s[:24] == pytest.approx(expected, abs=0.002)
    assert len({frame.tobytes() for frame in frames}) == 24


def test_a_pause_repeats_no_frame_and_the_last_picture_stays_as_long_as_before(pictures, tmp_path):
    """A GIF whose last picture stays for two seconds."""
    frames = [media.read_rgb(pictures / f"{t}.png") for t in range(16)]
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[40] * 15 + [2000])
    note, extracted = extract(tmp_path / "a.gif", tmp_path / "clip")
    assert (len(extracted), note.fps) == (16, 25)
    assert len({frame.tobytes() for frame in extracted}) == 16
    assert note.times_s[-1] - note.times_s[-2] == pytest.approx(2)
    assert extract(tmp_path / "a.gif", tmp_path / "part", end_s=0.6)[0].frames == 15


def test_a_clip_with_uneven_times_is_written_with_them(pictures, tmp_path):
    pause = r"setpts='if(lt(N\,15)\,N/25\,2.56)/TB'"
    ffmpeg(*source_flags(pictures, count=16), "-vf", pause, "-fps_mode", "passthrough", *X264, tmp_path / "a.mp4")
    _, frames = extract(tmp_path / "a.mp4", tmp_path / "clip")
    clip = open_clip(tmp_path / "clip", Config(data_folder=str(tmp_path / "clip")))
    with VideoWriter(tmp_path / "b.mp4", clip.fps, times_s=clip.times_s) as video:
        for frame in frames:
            video.write(frame)
    before, after = ([frame.time_s for frame in read_frames(tmp_path / name)] for name in ("a.mp4", "b.mp4"))
    assert after == pytest.approx(before, abs=0.001)
    assert after[-1] == pytest.approx(2.56, abs=0.001)


def test_evenly_spaced_frames_have_one_rate(pictures, tmp_path):
    """Matroska rounds times to milliseconds."""
    ffmpeg(*source_flags(pictures, "30000/1001", 24), *X264, tmp_path / "a.mkv")
    note, _ = extract(tmp_path / "a.mkv", tmp_path / "clip")
    assert note.fps == pytest.approx(30000 / 1001, abs=1e-6)
    assert open_clip(tmp_path / "clip", Config(data_folder=str(tmp_path / "clip"))).times_s == ()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pictures_that_begin_after_the_sound_stay_in_step_with_it(pictures, tmp_path, suffix):
    sound = ["-f", "lavfi", "-i", "sine=440:duration=1", "-itsoffset", 0.4]
    source = tmp_path / f"a.{suffix}"
    ffmpeg(*sound, *source_flags(pictures), "-map", "1:v", "-map", "0:a", *X264, "-c:a", "aac", source)
    note, frames = extract(source, tmp_path / "clip")
    assert (len(frames), note.times_s[0]) == (8, pytest.approx(0.4, abs=0.001))
    audio = Audio(source, 0, None, lead_s=0.4, track=find_track(source))
    with VideoWriter(tmp_path / "b.mp4", 25, audio=audio) as video:
        for frame in frames:
            video.write(frame)
    with av.open(str(tmp_path / "b.mp4")) as written:
        starts = {stream.type: float(stream.start_time * stream.time_base) for stream in written.streams}
    assert starts["video"] - starts["audio"] == pytest.approx(0.4, abs=0.02)


def test_sound_that_is_longer_than_the_pictures_adds_no_frame(pictures, tmp_path):
    sound = ["-f", "lavfi", "-i", "sine=440:duration=30"]
    for name in ("a.mp4", "a.mkv"):
        ffmpeg(*sound, *source_flags(pictures), "-map", "1:v", "-map", "0:a", *X264, "-c:a", "aac", tmp_path / name)
        assert count_frames(tmp_path / name, 0, None, 500) == len(list(read_video(tmp_path / name))) == 8


def test_a_sound_track_that_nobody_decodes_falls_back_to_the_next(pictures, tmp_path, capsys):
    sound = ["-f", "lavfi", "-i", "sine=440:duration=1", "-f", "lavfi", "-i", "sine=880:duration=1"]
    maps = ["-map", "0:v", "-map", "1:a", "-map", "2:a"]
    codecs = [*X264, "-c:a:0", "ac3", "-c:a:1", "aac"]
    ffmpeg(*source_flags(pictures)[:4], *sound, *maps, *codecs, "-t", 0.3, tmp_path / "a.mov")
    data = (tmp_path / "a.mov").read_bytes()
    (tmp_path / "strange.mov").write_bytes(data.replace(b"ac-3", b"qqqq"))
    assert find_track(tmp_path / "strange.mov") == 1
    assert "sound track 1 cannot be decoded; track 2 of 2 is taken" in capsys.readouterr().err


def test_sound_keeps_its_place(tmp_path):
    """A beep at .5 s of a video is at .2 s of the part that begins at .3 s, and silence follows the sound's end."""
    beep = "aevalsrc='sin(2000*t)*between(t,0.5,0.6)':d=0.8"
    ffmpeg("-f", "lavfi", "-i", beep, tmp_path / "a.m4a")
    with VideoWriter(tmp_path / "b.mp4", 25, audio=Audio(tmp_path / "a.m4a", 0.3)) as video:
        for _ in range(25):
            video.write(np.zeros((16, 16, 3), np.uint8))
    with av.open(str(tmp_path / "b.mp4")) as written:
        parts = [frame.to_ndarray()[0] for frame in written.decode(audio=0)]
        rate = written.streams.audio[0].rate
    loud = np.flatnonzero(np.abs(np.concatenate(parts)) > 0.1) / rate
    assert loud.min() == pytest.approx(0.2, abs=0.02)
    assert loud.max() == pytest.approx(0.3, abs=0.02)
    assert len(np.concatenate(parts)) / rate == pytest.approx(1.0, abs=0.05)


def test_words_in_metadata_are_words(pictures, tmp_path):
    words = [
        "comment=Audio: music",
        "comment=Duration: 01:30:00.00 of raw footage",
        "title=displaymatrix: rotation of -90.00 degrees",
    ]
    for number, text in enumerate(words):
        path = tmp_path / f"{number}.mp4"
        ffmpeg(*source_flags(pictures), *X264, "-metadata", text, path)
        metadata = read_video_metadata(path)
        assert (metadata.width, metadata.height, metadata.has_audio) == (64, 48, False)
        assert count_frames(path, 0, None, 500) == 8


def test_a_high_speed_camera_keeps_its_rate(pictures, tmp_path):
    ffmpeg(*source_flags(pictures, 960), *X264, tmp_path / "a.mp4")
    assert extract(tmp_path / "a.mp4", tmp_path / "clip")[0].fps == pytest.approx(960)


def test_a_codec_tag_is_no_size(pictures, tmp_path):
    ffmpeg(*source_flags(pictures), "-c:v", "mpeg2video", "-q:v", 2, "-f", "mpegts", tmp_path / "a.ts")
    note, _ = extract(tmp_path / "a.ts", tmp_path / "clip")
    assert (note.width, note.height, note.frames) == (64, 48, 8)


@pytest.mark.parametrize("name", ["a.ts", "a.mts", "a.mpg", "a.mp4", "a.mkv"])
def test_a_part_is_exact_in_every_container_with_long_groups(tmp_path, name):
    """Three seconds in groups of 60 frames, with frames that refer to later ones."""
    scene, folder = SCENES["pan"](64, 48, 24), tmp_path / "pictures"
    folder.mkdir()
    for t in range(75):
        picture = scene.frame(t % 24).rgb
        picture[:16] = 3 * t  # The number of the frame, as a grey value.
        media.write_png(folder / f"{t}.png", picture)
    codec = ["-c:v", "mpeg2video", "-q:v", 2, "-bf", 2] if name == "a.mpg" else X264
    ffmpeg("-framerate", 25, "-i", folder / "%d.png", "-g", 60, *codec, tmp_path / name)
    part = [round(frame[4:12, 8:-8].mean() / 3) for frame in read_video(tmp_path / name, 70 / 25, 73 / 25)]
    assert part == [70, 71, 72]
    assert count_frames(tmp_path / name, 70 / 25, 73 / 25, 500) == 3


@pytest.mark.parametrize(("size", "matrix"), [((1280, 720), "bt709"), ((320, 180), "bt601")])
@pytest.mark.parametrize("is_tagged", [True, False])
def test_colours_follow_tags_or_else_the_size(tmp_path, size, matrix, is_tagged):
    media.write_png(tmp_path / "0.png", draw_bars(*size))
    name = {"bt709": "bt709", "bt601": "smpte170m"}[matrix]
    tags = ["-colorspace", name, "-color_primaries", name, "-color_trc", name]
    ffmpeg(
        "-i",
        tmp_path / "0.png",
        "-vf",
        f"scale=out_color_matrix={matrix}:out_range=tv",
        *tags,
        *X264,
        tmp_path / "a.mp4",
    )
    unknown = "h264_metadata=colour_primaries=2:transfer_characteristics=2:matrix_coefficients=2"
    ffmpeg("-i", tmp_path / "a.mp4", "-c", "copy", *([] if is_tagged else ["-bsf:v", unknown]), tmp_path / "b.mp4")
    assert np.abs(read_bars(next(read_video(tmp_path / "b.mp4"))) - BARS).max() <= 2


def test_full_range_and_ten_bits(tmp_path):
    media.write_png(tmp_path / "0.png", draw_bars(320, 180))
    scale = "scale=out_color_matrix=bt709:out_range=pc"
    tags = ["-colorspace", "bt709", "-color_range", "pc"]
    ffmpeg(
        "-i",
        tmp_path / "0.png",
        "-vf",
        scale,
        *tags,
        "-c:v",
        "libx264",
        "-crf",
        4,
        "-pix_fmt",
        "yuv444p10le",
        tmp_path / "a.mp4",
    )
    deep = next(read_video(tmp_path / "a.mp4"))
    assert deep.dtype == np.uint16
    assert np.abs(read_bars(deep) / 257 - BARS).max() <= 1


@pytest.mark.parametrize("kind", ["mp4", "prores", "ffv1"])
def test_colour_bars_through_encode_and_decode(tmp_path, kind):
    bars = draw_bars(1280, 720)
    with VideoWriter(tmp_path / "a.mkv", 25, crf=12, kind=kind) as video:
        video.write(bars)
    decoded = next(read_video(tmp_path / "a.mkv"))
    difference = np.abs(read_bars(decoded) / (257 if decoded.dtype == np.uint16 else 1) - BARS).max()
    assert difference <= (0 if kind == "ffv1" else 2)


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_a_high_dynamic_range_is_brought_to_the_usual_one(tmp_path, transfer):
    """The reference white of 203 nits becomes the white of SDR, a little compressed; colours below stay."""
    media.write_png(tmp_path / "0.png", draw_bars(640, 360))
    convert = f"zscale=pin=709:tin=709:min=gbr:rin=pc:p=2020:t={transfer}:m=2020_ncl:r=tv:npl=203,format=yuv420p10le"
    tags = ["-color_primaries", "bt2020", "-color_trc", transfer, "-colorspace", "bt2020nc"]
    codec = ["-c:v", "libx265", "-x265-params", "log-level=none"]
    ffmpeg("-i", tmp_path / "0.png", "-vf", convert, *codec, *tags, tmp_path / "a.mp4")
    assert read_video_metadata(tmp_path / "a.mp4").hdr == {"smpte2084": "PQ", "arib-std-b67": "HLG"}[transfer]
    decoded = next(read_video(tmp_path / "a.mp4"))
    assert decoded.dtype == np.uint8
    bars = read_bars(decoded)
    assert bars[0].min() >= 215  # the white
    tolerance = 15 if transfer == "smpte2084" else 40  # zscale leaves out the OOTF of HLG
    assert np.abs(bars[1:] - BARS[1:]).max() <= tolerance


def test_fields_are_made_whole_or_kept(pictures, tmp_path):
    interleave = "scale=320:240,tinterlace=interleave_top"
    flags = ["-c:v", "libx264", "-crf", 12, "-flags", "+ildct+ilme", "-pix_fmt", "yuv420p"]
    ffmpeg("-framerate", 50, "-i", pictures / "%d.png", "-vf", interleave, *flags, tmp_path / "a.mp4")
    ffmpeg("-framerate", 50, "-i", pictures / "%d.png", "-vf", "scale=320:240", *X264, tmp_path / "whole.mp4")

    def line_difference(name, **options) -> float:
        frames = np.stack(list(read_video(tmp_path / name, **options))).astype(int)
        return float(np.abs(2 * frames[:, 1:-1] - frames[:, :-2] - frames[:, 2:]).mean())

    assert read_video_metadata(tmp_path / "a.mp4").is_interlaced
    assert line_difference("a.mp4") < 2 * line_difference("whole.mp4")
    assert line_difference("a.mp4", deinterlace=False) > 4 * line_difference("whole.mp4")


ALPHA_KINDS = {
    "a.webm": ["-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", 0],
    "b.webm": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"],
    "a.mov": ["-c:v", "prores_ks", "-profile:v", 4444, "-pix_fmt", "yuva444p10le"],
    "b.mov": ["-c:v", "qtrle"],
    "a.apng": [],
    "a.gif": ["-lavfi", "split[a][b];[a]palettegen=reserve_transparent=1[p];[b][p]paletteuse"],
    "a.mkv": ["-c:v", "ffv1", "-pix_fmt", "bgra"],
}


@pytest.mark.parametrize("name", ALPHA_KINDS)
def test_opacity_of_a_video_becomes_masks(cut_outs, tmp_path, name):
    ffmpeg("-framerate", 25, "-i", cut_outs / "%d.png", *ALPHA_KINDS[name], tmp_path / name)
    frames = media.list_images(cut_outs)
    masks = np.stack(list(read_masks(tmp_path / name, frames, None, None))) > 127
    truth = np.stack([media.read_mask(path) for path in frames]) > 127
    assert (masks & truth).sum() / (masks | truth).sum() > 0.97


def test_opacity_that_cannot_be_decoded_is_refused_with_the_remedy(cut_outs, tmp_path):
    path, codec = tmp_path / "a.mov", ["-c:v", "libx265", "-x265-params", "alpha=1:log-level=none"]
    ffmpeg("-framerate", 25, "-i", cut_outs / "%d.png", *codec, "-pix_fmt", "yuva420p", path)
    with pytest.raises(UserError, match=r"a\.mov: HEVC with opacity .* export it as ProRes 4444"):
        list(read_masks(path, media.list_images(cut_outs), None, None))


def test_a_cover_picture_is_no_video(pictures, tmp_path):
    sound = ["-f", "lavfi", "-i", "sine=440:duration=1", "-i", pictures / "0.png"]
    ffmpeg(*sound, "-map", "0:a", "-map", "1:v", "-c:v", "png", "-disposition:v:0", "attached_pic", tmp_path / "a.m4a")
    with pytest.raises(UserError, match="has no video stream"):
        read_video_metadata(tmp_path / "a.m4a")


def read_times(path) -> list[float]:
    """Return the times of a video's frames in seconds."""
    return [frame.time_s for frame in read_frames(path)]


def test_frames_of_an_avi_with_reordered_frames_have_even_times(pictures, tmp_path):
    """An AVI stores only the order of decoding."""
    ffmpeg(*source_flags(pictures, 25, 24), "-c:v", "libx264", "-bf", 2, "-pix_fmt", "yuv420p", tmp_path / "a.avi")
    times = read_times(tmp_path / "a.avi")
    assert np.diff(times) == pytest.approx([0.04] * 23, abs=1e-6)


def test_joined_recordings_follow_each_other(pictures, tmp_path):
    ffmpeg(*source_flags(pictures, 25, 24), *X264, tmp_path / "a.ts")
    (tmp_path / "twice.ts").write_bytes((tmp_path / "a.ts").read_bytes() * 2)
    ffmpeg("-i", tmp_path / "a.ts", "-c", "copy", "-output_ts_offset", 900, tmp_path / "late.ts")
    (tmp_path / "ahead.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "late.ts").read_bytes())
    for name in ("twice.ts", "ahead.ts"):
        assert np.diff(read_times(tmp_path / name)) == pytest.approx([0.04] * 47, abs=1e-4)


def test_a_video_that_was_cut_without_encoding_is_not_damaged(pictures, tmp_path, capsys):
    """It stores frames that it does not show."""
    ffmpeg(*source_flags(pictures, 25, 24), *X264, "-g", 24, tmp_path / "a.mp4")
    ffmpeg("-ss", 0.4, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    assert len(read_times(tmp_path / "b.mp4")) == 14
    assert "damaged" not in capsys.readouterr().err


def test_a_matroska_that_ends_early_is_named(pictures, tmp_path, capsys):
    ffmpeg(*source_flags(pictures, 25, 24), *X264, "-g", 4, tmp_path / "a.mkv")
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    assert 0 < len(read_times(tmp_path / "half.mkv")) < 20
    assert "half.mkv: damaged" in capsys.readouterr().err


def test_every_kind_of_damage_is_one_line(cut_outs, tmp_path):
    """Bytes in the middle of a file are replaced by others."""
    random = np.random.default_rng(0)
    for name, flags in ALPHA_KINDS.items():
        ffmpeg("-framerate", 25, "-i", cut_outs / "%d.png", *flags, tmp_path / name)
        data = bytearray((tmp_path / name).read_bytes())
        for position in random.integers(len(data) // 4, len(data), 60):
            data[position] = random.integers(256)
        (tmp_path / name).write_bytes(data)
        try:
            list(read_video(tmp_path / name, alpha=True))
        except UserError as error:
            assert str(error).startswith(str(tmp_path / name))


def test_the_last_frame_of_a_written_video_stays_as_long_as_it_should(pictures, tmp_path):
    for kind, suffix in (("mp4", "mp4"), ("prores", "mov"), ("ffv1", "mkv")):
        path = tmp_path / f"a.{suffix}"
        with VideoWriter(path, 25, kind=kind, times_s=[0, 0.04, 0.1, 2.1]) as video:
            for t in range(3):
                video.write(media.read_rgb(pictures / f"{t}.png"))
        assert read_times(path) == pytest.approx([0, 0.04, 0.1], abs=0.001)
        assert read_video_metadata(path).duration_s == pytest.approx(2.1, abs=0.05)


@pytest.mark.parametrize(("kind", "suffix"), [("mp4", "mp4"), ("prores", "mov"), ("ffv1", "mkv")])
def test_frames_a_millionth_of_a_second_apart_are_all_written(pictures, tmp_path, kind, suffix):
    """Some web cameras give each frame twice, with times that hardly differ."""
    times_s = [0, 0.000001, 0.04, 0.040001, 0.08, 0.12]
    with VideoWriter(tmp_path / f"a.{suffix}", 25, kind=kind, times_s=times_s) as video:
        for t in range(5):
            video.write(media.read_rgb(pictures / f"{t}.png"))
    assert count_frames(tmp_path / f"a.{suffix}", 0, None, 100) == 5
    assert count_ticks(times_s, Fraction(1, 90000)) == [0, 1, 3600, 3601, 7200, 10800]


@pytest.mark.parametrize("fps", [0.0004, 23.976, 20000])
def test_slow_and_fast_videos_keep_their_times(pictures, tmp_path, fps):
    with VideoWriter(tmp_path / "a.mp4", fps) as video:
        for t in range(6):
            video.write(media.read_rgb(pictures / f"{t}.png"))
    note, _ = extract(tmp_path / "a.mp4", tmp_path / "clip")
    assert note.fps == pytest.approx(fps, rel=0.001)
    assert open_clip(tmp_path / "clip", Config(data_folder=str(tmp_path / "clip"))).times_s == ()


@pytest.mark.parametrize("flags", [["-c:a", "mp2"], ["-c:a", "ac3", "-ac", 6], ["-c:a", "aac", "-ar", 8000, "-ac", 1]])
def test_sound_of_broadcasts_and_calls_is_kept(pictures, tmp_path, flags):
    sound = ["-f", "lavfi", "-i", "sine=440:duration=1"]
    ffmpeg(*sound, *source_flags(pictures, 25, 24), "-map", "1:v", "-map", "0:a", *X264, *flags, tmp_path / "a.ts")
    with VideoWriter(tmp_path / "b.mp4", 25, audio=Audio(tmp_path / "a.ts")) as video:
        for _ in range(20):
            video.write(np.zeros((16, 16, 3), np.uint8))
    with av.open(str(tmp_path / "b.mp4")) as written:
        loudness = [np.abs(frame.to_ndarray()).max() for frame in written.decode(audio=0)]
    assert np.mean(np.array(loudness) > 0.02) > 0.8


def test_sound_that_changes_its_layout_goes_on(pictures, tmp_path):
    sound = ["-f", "lavfi", "-i", "sine=440:duration=0.5"]
    for name, channels, rate in (("a.ts", 1, 22050), ("b.ts", 2, 48000)):
        ffmpeg(*sound, "-c:a", "aac", "-ac", channels, "-ar", rate, tmp_path / name)
    joined = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "both.ts").write_bytes(joined)
    with VideoWriter(tmp_path / "c.mp4", 25, audio=Audio(tmp_path / "both.ts")) as video:
        for _ in range(20):
            video.write(np.zeros((16, 16, 3), np.uint8))
    assert read_video_metadata(tmp_path / "c.mp4").has_audio


def test_sound_of_a_file_that_was_replaced_is_silence(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"nonsense" * 99)
    assert find_track(tmp_path / "a.mp4") is None
    assert "cannot be read any more" in capsys.readouterr().err


def test_a_folder_of_masks_of_the_whole_video_is_cut_to_the_part(pictures, tmp_path, capsys):
    ffmpeg(*source_flags(pictures, 25, 24), *X264, tmp_path / "a.mp4")
    for t in range(24):
        mask = np.zeros((48, 64), np.uint8)
        mask[:, t : t + 8] = 255
        media.write_png(media.make_folder(tmp_path / "masks") / f"{t:05d}.png", mask)
    extract(tmp_path / "a.mp4", tmp_path / "clip", start_s=0.2, every=2)
    masks = list(read_masks(tmp_path / "masks", media.list_images(tmp_path / "clip")))
    assert [int(mask[0].argmax()) for mask in masks] == list(range(5, 24, 2))
    assert "holds masks of the whole video; those of the part are taken, from 00005.png on" in capsys.readouterr().out
    (tmp_path / "masks" / "00023.png").unlink()
    with pytest.raises(UserError, match=r"23 masks for 10 frames, which are a part of a\.mp4; give .*, which has 24$"):
        list(read_masks(tmp_path / "masks", media.list_images(tmp_path / "clip")))


@pytest.mark.parametrize("times", [5, ["a", 1, 2], [0, 2, 1, 3]])
def test_times_in_a_note_that_make_no_sense_are_one_line(pictures, tmp_path, times):
    ffmpeg(*source_flags(pictures), *X264, tmp_path / "a.mp4")
    extract(tmp_path / "a.mp4", tmp_path / "clip")
    path = tmp_path / "clip.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"times_s": times}))
    with pytest.raises(UserError, match=r"clip\.json: times_s is not a list of growing numbers"):
        open_clip(tmp_path / "clip", Config(data_folder=str(tmp_path / "clip")))
