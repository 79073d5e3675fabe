"""What users are told about the masks of a clip, and the picture of them."""

import re
import shutil

import numpy as np
import pytest

import media
from masks.provenance import read_mask_note
from preprocessing.mask_report import LEAST_OVERLAP, find_jumps, report_masks
from scenes.catalogue import SCENES
from scenes.files import write_scene

SIZE = (192, 112, 8)


@pytest.fixture(scope="module")
def drawn_scene(tmp_path_factory):
    """The scene `bend`, whose object moves and bends, drawn once."""
    return write_scene(SCENES["bend"](*SIZE), tmp_path_factory.mktemp("report"))


@pytest.fixture
def clip(drawn_scene, tmp_path):
    """The frames of the scene, and the folder of its true masks, as if they had been found."""
    (tmp_path / "bend").symlink_to(drawn_scene, target_is_directory=True)
    masks = tmp_path / "bend_maskrcnn"
    shutil.copytree(drawn_scene.with_name("bend_gt"), masks)
    return media.list_images(tmp_path / "bend"), masks


def spoil_mask(folder, t):
    """Replace the mask of frame t by one in a corner."""
    path = media.list_images(folder)[t]
    mask = np.zeros_like(media.read_mask(path))
    mask[:30, :30] = 255
    media.write_png(path, mask)


def test_true_masks_do_not_jump_however_the_object_moves(clip, capsys):
    frames, folder = clip
    assert find_jumps(frames, [folder]) == {}
    report_masks(frames, folder, {}, [], "import")
    assert "jumps" not in capsys.readouterr().err
    assert "jumps" not in read_mask_note(folder)


def test_a_wrong_mask_is_said_and_shown_and_noted(clip, capsys):
    frames, folder = clip
    report_masks(frames, folder, {}, [], "import")
    usual = media.read_rgb(folder.with_name("bend_maskrcnn.png"))
    spoil_mask(folder, 3)
    jumps = find_jumps(frames, [folder])
    assert list(jumps) == [2, 3]  # from the right mask before it to the wrong one, and back
    assert max(jumps.values()) < LEAST_OVERLAP
    capsys.readouterr()
    report_masks(frames, folder, {}, [], "import")
    assert re.search(
        r"the mask jumps in 2 of 7 pairs of neighbouring frames, most after 0000[23]\.", capsys.readouterr().err
    )
    assert set(read_mask_note(folder)["jumps"]) == {frames[2].name, frames[3].name}
    assert media.read_rgb(folder.with_name("bend_maskrcnn.png")).shape[0] == 2 * usual.shape[0]  # two more rows


def test_an_object_that_leaves_the_frame_does_not_jump(tmp_path):
    rng = np.random.default_rng(0)
    ground, square = (media.resize(rng.integers(0, 255, (28, 40, 3)).astype(np.uint8), 160, 112) for _ in range(2))
    folder, masks = (media.make_folder(tmp_path / name) for name in ("square", "square_maskrcnn"))
    for t in range(8):
        x = 106 + 6 * t  # 12 pixels of it are left in the last frame, 18 in the one before
        frame, mask = ground.copy(), np.zeros((112, 160), np.uint8)
        frame[30:80, x : x + 50] = square[:50, : min(50, 160 - x)]
        mask[30:80, x : x + 50] = 255
        media.write_png(folder / f"{t:05d}.png", frame)
        media.write_png(masks / f"{t:05d}.png", mask)
    assert find_jumps(media.list_images(folder), [masks]) == {}


def test_each_object_is_looked_at_alone(clip, capsys):
    """Both together jump where the second one, a large one, leaves; the second one alone does not."""
    frames, folder = clip
    shutil.copytree(folder, folder.with_name("bend_maskrcnn_1"))
    second = media.make_folder(folder.with_name("bend_maskrcnn_2"))
    for t, path in enumerate(media.list_images(folder)):
        mask = np.zeros_like(media.read_mask(path))
        if t < 4:
            mask[:, -60:] = 255
        media.write_png(second / path.name, mask)
        media.write_png(path, np.maximum(media.read_mask(path), mask))
    assert list(find_jumps(frames, [folder])) == [3]
    report_masks(frames, folder, {}, [], "import")
    assert "jumps" not in capsys.readouterr().err


def test_an_object_that_comes_and_goes_does_not_jump(clip):
    frames, folder = clip
    for path in media.list_images(folder)[3:5]:
        media.write_png(path, np.zeros_like(media.read_mask(path)))
    assert find_jumps(frames, [folder]) == {}
