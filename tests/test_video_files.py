"""Videos of any kind: what they say of themselves, their frames, what is wrong with them."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

import media
from command_line import UserError
from media.decoding import exact_rate, read_video, video_facts
from preprocessing.scene_cuts import detect_cuts
from scenes.catalogue import SCENES


def ffmpeg(*arguments) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Twelve frames of odd size."""
    scene = SCENES["pan"](63, 45, 12)
    return [scene.frame(t).rgb for t in range(12)]


@pytest.fixture(scope="module")
def pictures(frames, tmp_path_factory):
    """The frames as files, for ffmpeg."""
    folder = tmp_path_factory.mktemp("pictures")
    for t, frame in enumerate(frames):
        media.write_png(folder / f"{t}.png", frame)
    return folder


@pytest.fixture(scope="module")
def movie(pictures, tmp_path_factory):
    """Lossless, 24 frames per second, 63 x 45."""
    path = tmp_path_factory.mktemp("movies") / "a clip é.mkv"
    ffmpeg("-framerate", 24, "-i", pictures / "%d.png", "-c:v", "ffv1", path)
    return path


def test_frames_come_out_as_they_went_in(movie, frames):
    facts = video_facts(movie)
    assert (facts.width, facts.height, facts.fps, facts.frames) == (63, 45, 24, 12)
    assert not (facts.has_audio or facts.has_alpha or facts.is_variable or facts.rotation)
    for found, expected in zip(read_video(movie), frames, strict=True):
        assert np.abs(found.astype(int) - expected).max() <= 3  # through YUV and back


def test_a_part_of_a_video_is_read(movie, frames):
    part = list(read_video(movie, start_s=3 / 24, end_s=6 / 24))
    assert len(part) == 3
    assert np.abs(part[0].astype(int) - frames[3]).max() <= 3


def test_frames_are_upright(pictures, tmp_path, frames):
    ffmpeg("-framerate", 10, "-i", pictures / "%d.png", "-vf", "crop=62:44", "-pix_fmt", "yuv420p", tmp_path / "a.mp4")
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "turned.mp4")
    facts = video_facts(tmp_path / "turned.mp4")
    assert (facts.width, facts.height, facts.rotation) == (44, 62, 270)
    upright = next(read_video(tmp_path / "turned.mp4"))
    lying = next(read_video(tmp_path / "a.mp4"))
    assert np.abs(upright.astype(int) - np.rot90(lying)).mean() < 2


def test_uneven_frames_are_noticed_and_taken_at_the_mean_rate(pictures, tmp_path):
    source = ["-framerate", 25, "-i", pictures / "%d.png", "-vf", r"setpts=PTS+gt(N\,4)*0.2/TB,crop=62:44"]
    ffmpeg(*source, "-fps_mode", "vfr", "-pix_fmt", "yuv420p", tmp_path / "uneven.mp4")
    facts = video_facts(tmp_path / "uneven.mp4")
    assert facts.is_variable
    count = len(list(read_video(tmp_path / "uneven.mp4", fps=facts.fps)))
    assert abs(count - 12) <= 1


def test_pixels_that_are_not_square_are_made_square(pictures, tmp_path):
    """As DV, DVD and HDV have them: stored narrow, shown wide."""
    ffmpeg("-i", pictures / "%d.png", "-vf", "crop=48:44,setsar=4/3", "-pix_fmt", "yuv420p", tmp_path / "dv.mp4")
    facts = video_facts(tmp_path / "dv.mp4")
    assert (facts.width, facts.height) == (64, 44)
    assert next(read_video(tmp_path / "dv.mp4")).shape == (44, 64, 3)
    ffmpeg("-i", pictures / "%d.png", "-vf", "crop=48:44,setsar=1280/1281", "-pix_fmt", "yuv420p", tmp_path / "hd.mp4")
    assert next(read_video(tmp_path / "hd.mp4")).shape == (44, 48, 3)  # rounding, no format


def test_gif_webm_and_opacity(pictures, tmp_path):
    ffmpeg("-i", pictures / "%d.png", tmp_path / "a.gif")
    ffmpeg("-i", pictures / "%d.png", "-pix_fmt", "yuva420p", "-c:v", "libvpx-vp9", tmp_path / "a.webm")
    for name in ("a.gif", "a.webm"):
        assert len(list(read_video(tmp_path / name))) == 12
    assert video_facts(tmp_path / "a.webm").has_alpha
    assert next(read_video(tmp_path / "a.webm", alpha=True)).min() == 255


def test_sound_is_noticed(pictures, tmp_path):
    sound = ["-f", "lavfi", "-i", "sine=440", "-shortest", "-c:v", "ffv1"]
    ffmpeg("-i", pictures / "%d.png", *sound, tmp_path / "loud.mkv")
    assert video_facts(tmp_path / "loud.mkv").has_audio


@pytest.mark.parametrize(("told", "true"), [(29.97, 30000 / 1001), (23.98, 24000 / 1001), (25, 25), (24.83, 24.83)])
def test_broadcast_rates_are_exact(told, true):
    assert exact_rate(told) == pytest.approx(true, abs=1e-9)


def test_what_is_wrong_with_a_file_is_said(tmp_path, movie):
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
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-vf", "crop=62:44", "-movflags", "+faststart"]
    ffmpeg("-i", pictures / "%d.png", *coded, tmp_path / "a.mp4")
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    count = len(list(read_video(tmp_path / "cut.mp4")))
    assert 0 < count < 12
    assert f"damaged, {count} frames could be read" in capsys.readouterr().err


def test_a_scene_cut_is_found_and_motion_is_none():
    first, second = (SCENES[name](160, 90, 30) for name in ("fast", "cross"))
    one, other = ([scene.frame(t).rgb for t in range(0, 12)] for scene in (first, second))
    turned = [frame[::-1, ::-1] for frame in other]
    assert detect_cuts(one).cuts == []
    assert detect_cuts(one + turned).cuts == [12]


def test_frames_of_a_single_colour_are_noticed():
    scene = SCENES["pan"](160, 90, 6)
    black = np.zeros((90, 160, 3), np.uint8)
    seen = detect_cuts([black, black, *(scene.frame(t).rgb for t in range(6)), black])
    assert seen.empty == [0, 1, 8]
    assert seen.cuts == []
    blue = np.full((90, 160, 3), (0, 0, 255), np.uint8)
    other = SCENES["cross"](160, 90, 6)
    hidden = detect_cuts([scene.frame(0).rgb, blue, *(other.frame(t).rgb[::-1, ::-1] for t in range(3))])
    assert (hidden.empty, hidden.cuts) == ([1], [2])
