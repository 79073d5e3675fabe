"""Reading video files: their properties, their frames, and messages about damaged files."""

import cv2
import numpy as np
import pytest
from conftest import SHARED, ffmpeg
from skimage import data

import media
from command_line import UserError
from media.container import count_frames
from media.decoding import read_frames, read_video, read_video_metadata
from preprocessing.scene_cuts import detect_cuts
from scenes.catalogue import SCENES


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Twelve frames of 63 x 45 pixels."""
    scene = SCENES["pan"](63, 45, 12)
    return [scene.frame(t).rgb for t in range(12)]


@pytest.fixture(scope="module")
def pictures(frames, tmp_path_factory):
    """Folder with the frames as PNG files, for ffmpeg."""
    folder = tmp_path_factory.mktemp("pictures")
    for t, frame in enumerate(frames):
        media.write_png(folder / f"{t}.png", frame)
    return folder


@pytest.fixture(scope="module")
def movie(pictures, tmp_path_factory):
    """Lossless video of the frames, 24 frames per second."""
    path = tmp_path_factory.mktemp("movies") / "a clip é.mkv"
    ffmpeg("-framerate", 24, "-i", pictures / "%d.png", "-c:v", "ffv1", path)
    return path


def test_frames_come_out_as_they_went_in(movie, frames):
    metadata = read_video_metadata(movie)
    assert (metadata.width, metadata.height, metadata.fps, count_frames(movie, 0, None, 99)) == (63, 45, 24, 12)
    assert not (metadata.has_audio or metadata.has_alpha or metadata.is_interlaced or metadata.hdr or metadata.rotation)
    for frame, expected in zip(read_video(movie), frames, strict=True):
        assert np.abs(frame.astype(int) - expected).max() <= 3  # conversion to YUV and back rounds


def test_a_part_of_a_video_is_read(movie, frames):
    part = list(read_video(movie, start_s=3 / 24, end_s=6 / 24))
    assert len(part) == 3
    assert np.abs(part[0].astype(int) - frames[3]).max() <= 3


def test_frames_are_upright(pictures, tmp_path, frames):
    ffmpeg("-framerate", 10, "-i", pictures / "%d.png", "-vf", "crop=62:44", "-pix_fmt", "yuv420p", tmp_path / "a.mp4")
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "turned.mp4")
    metadata = read_video_metadata(tmp_path / "turned.mp4")
    assert (metadata.width, metadata.height, metadata.rotation) == (44, 62, 270)
    upright = next(read_video(tmp_path / "turned.mp4"))
    lying = next(read_video(tmp_path / "a.mp4"))
    assert np.abs(upright.astype(int) - np.rot90(lying)).mean() < 2


def test_uneven_frames_are_taken_once_each_at_their_own_times(pictures, tmp_path):
    source = ["-framerate", 25, "-i", pictures / "%d.png", "-vf", r"setpts=PTS+gt(N\,4)*0.2/TB,crop=62:44"]
    ffmpeg(*source, "-fps_mode", "vfr", "-pix_fmt", "yuv420p", tmp_path / "uneven.mp4")
    times = [frame.time_s for frame in read_frames(tmp_path / "uneven.mp4")]
    assert times == pytest.approx([t / 25 + 0.2 * (t > 4) for t in range(12)], abs=1e-4)


def test_pixels_that_are_not_square_are_made_square(pictures, tmp_path):
    """DV, DVD and HDV store narrow frames that players show wider."""
    ffmpeg("-i", pictures / "%d.png", "-vf", "crop=48:44,setsar=4/3", "-pix_fmt", "yuv420p", tmp_path / "dv.mp4")
    metadata = read_video_metadata(tmp_path / "dv.mp4")
    assert (metadata.width, metadata.height) == (64, 44)
    assert next(read_video(tmp_path / "dv.mp4")).shape == (44, 64, 3)
    ffmpeg("-i", pictures / "%d.png", "-vf", "crop=48:44,setsar=1280/1281", "-pix_fmt", "yuv420p", tmp_path / "hd.mp4")
    assert next(read_video(tmp_path / "hd.mp4")).shape == (44, 48, 3)  # an aspect so close to 1 comes from rounding


def test_gif_webm_and_opacity(pictures, tmp_path):
    ffmpeg("-i", pictures / "%d.png", tmp_path / "a.gif")
    ffmpeg("-i", pictures / "%d.png", "-pix_fmt", "yuva420p", "-c:v", "libvpx-vp9", tmp_path / "a.webm")
    for name in ("a.gif", "a.webm"):
        assert len(list(read_video(tmp_path / name))) == 12
    assert read_video_metadata(tmp_path / "a.webm").has_alpha
    assert next(read_video(tmp_path / "a.webm", alpha=True)).min() == 255


def test_sound_is_noticed(pictures, tmp_path):
    sound = ["-f", "lavfi", "-i", "sine=440", "-shortest", "-c:v", "ffv1"]
    ffmpeg("-i", pictures / "%d.png", *sound, tmp_path / "loud.mkv")
    assert read_video_metadata(tmp_path / "loud.mkv").has_audio


def test_the_message_about_an_unreadable_file_gives_the_reason(tmp_path, movie):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello" * 99)
    ffmpeg("-f", "lavfi", "-i", "sine=440", "-t", 0.2, tmp_path / "sound.m4a")
    (tmp_path / "folder.mp4").mkdir()
    messages = {
        "none.mp4": "no such file",
        "folder.mp4": "no such file",
        "empty.mp4": r"is empty \(0 bytes\)",
        "text.mp4": "not a video that can be read",
        "sound.m4a": "has no video stream, only audio",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            next(read_video(tmp_path / name))
    with pytest.raises(UserError, match="no frame could be read"):
        list(read_video(movie, start_s=99))


def test_an_unknown_codec_is_named(pictures, tmp_path):
    ffmpeg("-i", pictures / "%d.png", "-c:v", "mpeg4", "-vtag", "XVID", tmp_path / "a.avi")
    path = tmp_path / "strange.avi"
    path.write_bytes((tmp_path / "a.avi").read_bytes().replace(b"XVID", b"qqqq"))
    with pytest.raises(UserError, match=r"strange\.avi: .*(can't be decoded|no frame could be read)"):
        list(read_video(path))


def test_a_damaged_video_gives_what_can_be_read_and_a_warning(pictures, tmp_path, capsys):
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-vf", "crop=62:44", "-movflags", "+faststart"]
    ffmpeg("-i", pictures / "%d.png", *codec, tmp_path / "a.mp4")
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    count = len(list(read_video(tmp_path / "cut.mp4")))
    assert 0 < count < 12
    assert f"damaged, {count} frames could be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_scene_cut_is_detected_and_fast_motion_is_not_one():
    scenes = [SCENES[name](160, 90, 30) for name in ("fast", "cross")]
    first, second = ([scene.frame(t).rgb for t in range(12)] for scene in scenes)
    rotated = [frame[::-1, ::-1] for frame in second]  # so that the second background differs from the first
    assert detect_cuts(first).cuts == []
    assert detect_cuts(first + rotated).cuts == [12]


def test_a_fast_blurred_pan_of_a_real_clip_is_no_scene_cut():
    folder = SHARED / "clips" / "motocross-jump"
    if not folder.is_dir():
        pytest.skip("the real clips are not on this machine (../shared/clips)")
    frames = [media.read_rgb(path) for path in sorted(folder.glob("*.jpg"))[12:20]]
    assert len(frames) == 8
    assert detect_cuts(frames).cuts == []


def test_a_pan_by_half_a_frame_is_no_scene_cut():
    picture = media.resize(data.astronaut(), 1024, 1024)[200:560]
    frames = [picture[:, left : left + 500] for left in (0, 250, 500)]
    assert detect_cuts(frames).cuts == []
    assert detect_cuts([frames[0], frames[2]]).cuts == [1]  # They share nothing.


def test_a_cut_behind_subtitles_is_found():
    frames = [np.ascontiguousarray(media.resize(picture, 640, 360)) for picture in (data.astronaut(), data.coffee())]
    for frame in frames:
        cv2.putText(frame, "the same words, before and after", (30, 340), cv2.FONT_HERSHEY_SIMPLEX, 1, (255,) * 3, 2)
    assert detect_cuts(frames).cuts == [1]


def test_a_cut_behind_a_ticker_is_found():
    frames = [np.ascontiguousarray(media.resize(picture, 640, 360)) for picture in (data.astronaut(), data.coffee())]
    for frame, left in zip(frames, (30, 0), strict=True):
        cv2.putText(frame, "these words move to the left", (left, 340), cv2.FONT_HERSHEY_SIMPLEX, 1, (255,) * 3, 2)
    assert detect_cuts(frames).cuts == [1]


def test_noise_in_the_dark_is_empty():
    noise = np.random.default_rng(0).normal(20, 7, (180, 320, 3)).clip(0, 255).astype(np.uint8)
    assert detect_cuts([noise, media.resize(data.astronaut(), 320, 180)]).empty == [0]


def test_frames_of_a_single_colour_are_noticed():
    scene = SCENES["pan"](160, 90, 6)
    black = np.zeros((90, 160, 3), np.uint8)
    with_black = detect_cuts([black, black, *(scene.frame(t).rgb for t in range(6)), black])
    assert with_black.empty == [0, 1, 8]
    assert with_black.cuts == []
    blue = np.full((90, 160, 3), (0, 0, 255), np.uint8)
    other = SCENES["cross"](160, 90, 6)
    cut_behind_blue = detect_cuts([scene.frame(0).rgb, blue, *(other.frame(t).rgb[::-1, ::-1] for t in range(3))])
    assert (cut_behind_blue.empty, cut_behind_blue.cuts) == ([1], [2])
