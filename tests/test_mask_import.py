"""Import of masks that another program made."""

import numpy as np
import pytest
from conftest import run_script
from PIL import Image

import media
import preprocess_mask_rcnn
from command_line import UserError
from media.decoding import read_video

COUNT, SIZE = 4, (48, 32)


def square(t: int) -> np.ndarray:
    """Return a mask (H, W) of a square that moves to the right."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[8:20, 4 + 6 * t : 20 + 6 * t] = 255
    return mask


@pytest.fixture
def clip(tmp_path):
    """A clip without masks; returns the folder of its frames."""
    folder = media.make_folder(tmp_path / "data" / "ball")
    for t in range(COUNT):
        media.write_png(folder / f"{t:05d}.png", np.repeat(square(t)[..., None] // 2 + 40, 3, axis=-1))
    return folder


@pytest.fixture
def source(tmp_path):
    """An empty folder for the masks to import."""
    return media.make_folder(tmp_path / "elsewhere")


def import_masks(clip, source, *flags: str) -> list[np.ndarray]:
    """Import masks by the script, and return the masks that it wrote."""
    preprocess_mask_rcnn.main(["--vid-path", str(clip), "--method", "import", "--masks", str(source), *flags])
    folder = clip.with_name("ball_maskrcnn")
    return [media.read_mask(path) for path in media.list_images(folder)]


def test_soft_masks_stay_soft_unless_a_threshold_is_given(clip, source):
    for t in range(COUNT):
        media.write_png(source / f"{t:05d}.png", square(t) // 4 * 3)
    assert np.unique(import_masks(clip, source)).tolist() == [0, 189]
    for path in clip.with_name("ball_maskrcnn").iterdir():
        path.unlink()
    assert np.unique(import_masks(clip, source, "--threshold", "0.5")).tolist() == [0, 255]


def test_one_label_is_taken_out_of_a_davis_annotation(clip, source):
    for t in range(COUNT):
        labels = np.zeros(SIZE[::-1], np.uint8)
        labels[square(t) > 0] = 2
        labels[:4] = 1
        image = Image.fromarray(labels, mode="P")
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        image.save(source / f"{t:05d}.png")
    for mask, t in zip(import_masks(clip, source, "--label", "2"), range(COUNT), strict=True):
        np.testing.assert_array_equal(mask, square(t))


def test_other_names_are_taken_in_order_if_the_number_is_right(clip, source, capsys):
    for t in range(COUNT):
        media.write_png(source / f"matte_{t + 8}.png", square(t))  # matte_8 comes before matte_10
    for mask, t in zip(import_masks(clip, source), range(COUNT), strict=True):
        np.testing.assert_array_equal(mask, square(t))
    assert "taken in order, matte_8.png for 00000.png" in capsys.readouterr().out


def test_a_wrong_number_of_other_names_is_refused(clip, source):
    for t in range(COUNT - 1):
        media.write_png(source / f"matte_{t}.png", square(t))
    with pytest.raises(UserError, match="holds 3 pictures for 4 frames, and none is named 00000"):
        import_masks(clip, source)
    assert not clip.with_name("ball_maskrcnn").exists()


@pytest.mark.slow
def test_a_mask_of_another_aspect_is_named_and_nothing_is_left_behind(clip, source):
    for t in range(COUNT):
        media.write_png(source / f"{t:05d}.png", square(t) if t < 3 else np.zeros((40, 40), np.uint8))
    done = run_script("preprocess_mask_rcnn.py", "--vid-path", clip, "--method", "import", "--masks", source)
    assert done.returncode == 2
    assert "00003.png: is 40 x 40, the frames are 48 x 32" in done.stderr
    assert not clip.with_name("ball_maskrcnn").exists()


def test_a_black_and_white_video_is_a_matte(clip, tmp_path):
    with media.VideoWriter(tmp_path / "matte.mp4", 10) as video:
        for t in range(COUNT):
            video.write(np.repeat(square(t)[..., None], 3, axis=-1))
    for mask, t in zip(import_masks(clip, tmp_path / "matte.mp4"), range(COUNT), strict=True):
        assert np.abs(mask.astype(int) - square(t)).mean() < 4


def test_the_opacity_of_a_video_is_a_matte(clip, tmp_path):
    import subprocess

    import imageio_ffmpeg

    pictures = media.make_folder(tmp_path / "rgba")
    for t in range(COUNT):
        media.write_png(pictures / f"{t}.png", np.dstack((np.full((*SIZE[::-1], 3), 90, np.uint8), square(t))))
    movie = tmp_path / "matte.mov"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", f"{pictures}/%d.png", "-c:v", "qtrle", str(movie)]
    subprocess.run(command, check=True)
    assert next(read_video(movie, alpha=True)).max() == 255
    for mask, t in zip(import_masks(clip, movie), range(COUNT), strict=True):
        np.testing.assert_array_equal(mask, square(t))


def test_a_matte_of_another_length_is_refused(clip, tmp_path):
    with media.VideoWriter(tmp_path / "matte.mp4", 10) as video:
        for _ in range(COUNT - 1):
            video.write(np.full((*SIZE[::-1], 3), 255, np.uint8))
    with pytest.raises(UserError, match=r"matte\.mp4: has only 3 frames, the clip has 4"):
        import_masks(clip, tmp_path / "matte.mp4")


def test_masks_that_exist_are_kept(clip, source):
    own = media.make_folder(clip.with_name("ball_maskrcnn"))
    media.write_png(own / "00001.png", np.full(SIZE[::-1], 255, np.uint8))
    for t in range(COUNT):
        media.write_png(source / f"{t:05d}.png", square(t))
    masks = import_masks(clip, source)
    assert (masks[1] == 255).all()
    np.testing.assert_array_equal(masks[2], square(2))


def test_every_frame_is_rated_where_the_truth_is_known(clip, source, capsys):
    truth = media.make_folder(clip.with_name("ball_gt"))
    for t in range(COUNT):
        media.write_png(truth / f"{t:05d}.png", square(t))
        media.write_png(source / f"{t:05d}.png", square(t) if t else np.roll(square(t), 8, axis=1))
    import_masks(clip, source)
    assert "mean 0.833, worst 0.333 in 00000.png" in capsys.readouterr().out
    assert clip.with_name("ball_maskrcnn.json").is_file()
    assert clip.with_name("ball_maskrcnn.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "import"], "--masks PATH and --method import belong together"),
        (["--label", "2"], "--label belongs to --method import"),
        (["--method", "import", "--masks", ".", "--threshold", "2"], "--threshold is 2.0"),
        (["--instance", "0"], "--instance is 0, expected 1 or more"),
        (["--method", "motion", "--point", "3,4,5"], "--point is for detectors; --method motion does not use it"),
        (["--method", "import", "--masks", "none"], "none: no such file or folder"),
        (["--method", "motion", "--class_name", "dragon"], "--class_name is for detectors"),
        (["--refine", "--instance", "2"], "--refine refines existing masks, --instance finds new ones"),
        (["--point", "3,4,5", "--instance", "2"], "--instance and --point both choose an object"),
    ],
)
def test_flags_that_make_no_sense_are_refused(clip, flags, message):
    with pytest.raises(UserError, match=message):
        preprocess_mask_rcnn.main(["--vid-path", str(clip), *flags])
