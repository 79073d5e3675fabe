"""Labels or matte: what the values of mask pictures mean is decided once for a whole sequence, and can be told."""

import cv2
import numpy as np
import pytest
from conftest import draw_without_masks, ffmpeg
from PIL import Image

import media
import preprocess_mask_rcnn
from command_line import UserError

SIZE = (48, 32)  # width and height of the frames


@pytest.fixture
def clip(tmp_path):
    """Folder with six frames and no masks."""
    return draw_without_masks(tmp_path / "data")


def disc(value: int, radius: int = 9, softness: float = 0) -> np.ndarray:
    """Return a picture (H, W) with a disc of a value, whose border is soft over some pixels."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    inside = ((rows - 15) ** 2 + (columns - 20) ** 2 < radius**2).astype(np.float32)
    return np.rint(value * (cv2.GaussianBlur(inside, (0, 0), softness) if softness else inside)).astype(np.uint8)


IS_DISC = disc(1) > 0


def save(folder, pictures, palette=None, suffix="png", **options):
    """Write the pictures of a sequence into a new folder and return it."""
    for t, picture in enumerate(pictures):
        image = Image.fromarray(picture)
        if palette is not None:
            image = Image.fromarray(picture, mode="P")
            image.putpalette(palette)
        image.save(media.make_folder(folder) / f"{t:05d}.{suffix}", **options)
    return folder


def read_all(folder) -> np.ndarray:
    """Read the masks of a folder as a sequence."""
    paths = media.list_images(folder)
    kind = media.find_mask_kind(paths)
    return np.stack([media.read_mask(path, kind) for path in paths])


def test_noise_in_an_empty_frame_of_a_matte_is_no_object(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3, (2, *SIZE[::-1]), np.uint8)
    masks = read_all(save(tmp_path / "a", [*np.maximum(disc(255), noise), *noise]))
    assert (masks[:2][:, IS_DISC] == 255).all()
    assert not masks[2:].any()


def test_a_faint_matte_stays_faint(tmp_path):
    masks = read_all(save(tmp_path / "a", [disc(12, softness=2)] * 3))
    assert masks.max() == 12


def test_an_almost_transparent_object_in_one_frame_is_read_as_in_the_others(tmp_path):
    masks = read_all(save(tmp_path / "a", [disc(255), disc(10), disc(1)]))
    assert [int(mask.max()) for mask in masks] == [255, 10, 0]


@pytest.mark.parametrize("number", [1, 7, 18, 100])
def test_numbers_of_a_class_are_labels(tmp_path, number):
    masks = read_all(save(tmp_path / "a", [disc(number)] * 3))
    np.testing.assert_array_equal(masks[0] == 255, IS_DISC)
    assert set(np.unique(masks)) == {0, 255}


def test_several_classes_and_16_bit_numbers_are_labels(tmp_path):
    both = np.where(IS_DISC, 18, 0).astype(np.uint8)
    both[:5] = 150
    np.testing.assert_array_equal(read_all(save(tmp_path / "a", [both] * 2))[0] > 0, both > 0)
    deep = np.where(IS_DISC, 26001, 0).astype(np.uint16)
    np.testing.assert_array_equal(read_all(save(tmp_path / "b", [deep] * 2))[0] == 255, IS_DISC)


def test_dark_colours_are_labels(tmp_path):
    red = np.dstack((disc(64), disc(0), disc(0)))
    red[:5] = (0, 64, 0)
    expected = IS_DISC.copy()
    expected[:5] = True
    np.testing.assert_array_equal(read_all(save(tmp_path / "a", [red] * 2))[0] == 255, expected)


def test_a_transparent_entry_of_a_palette_is_outside(tmp_path):
    labels = np.where(IS_DISC, 2, 1).astype(np.uint8)
    folder = save(tmp_path / "a", [labels] * 2, palette=[0, 0, 0, 9, 9, 9, 200, 0, 0], transparency=1)
    np.testing.assert_array_equal(read_all(folder)[0] == 255, IS_DISC)


def test_the_void_of_a_palette_is_no_object_but_an_only_label_of_that_number_is(tmp_path):
    palette = [0, 0, 0, 128, 0, 0] + [0] * 253 * 3 + [224, 224, 192]
    labels = np.where(IS_DISC, 1, 0).astype(np.uint8)
    labels[:4] = 255
    void_alone = np.where(labels == 255, 255, 0).astype(np.uint8)
    masks = read_all(save(tmp_path / "a", [labels, void_alone], palette))
    np.testing.assert_array_equal(masks[0] == 255, IS_DISC)
    assert not masks[1].any()
    assert (read_all(save(tmp_path / "b", [void_alone] * 2, palette))[0] == void_alone).all()


def test_a_soft_matte_keeps_its_values_in_every_format(tmp_path):
    matte = disc(255, softness=1.5)
    for suffix in ("png", "tif", "bmp", "webp", "tga"):
        options = {"lossless": True} if suffix == "webp" else {}
        masks = read_all(save(tmp_path / suffix, [matte] * 2, suffix=suffix, **options))
        assert np.abs(masks[0].astype(int) - matte).max() < media.masks.LEAST_OPACITY, suffix
    colors = np.dstack([matte] * 3)
    assert np.abs(read_all(save(tmp_path / "rgb", [colors] * 2))[0].astype(int) - matte).max() < 3


def test_masks_that_the_project_wrote_are_mattes_whatever_their_values(tmp_path):
    media.write_mask(media.make_folder(tmp_path / "a") / "0.png", disc(9))
    np.testing.assert_array_equal(read_all(tmp_path / "a")[0], disc(9))


def test_labels_beside_masks_that_the_project_wrote_stay_labels(tmp_path):
    """Somebody's own masks may lie in one folder with masks that were found for the other frames."""
    folder = save(tmp_path / "a", [disc(1)] * 2)
    media.write_mask(folder / "00002.png", disc(255, softness=1))
    masks = read_all(folder)
    np.testing.assert_array_equal(masks[0] == 255, IS_DISC)
    np.testing.assert_array_equal(masks[2], disc(255, softness=1))


def import_masks(clip, source, *flags) -> np.ndarray:
    """Import masks by the script and return them as the clip has them then."""
    preprocess_mask_rcnn.main(["--vid-path", str(clip), "--method", "import", "--masks", str(source), *flags])
    return read_all(clip.with_name(f"{clip.name}_maskrcnn"))


def test_the_script_says_how_it_reads_masks_and_can_be_told(clip, tmp_path, capsys):
    source = save(tmp_path / "a", [disc(40)] * 6)
    masks = import_masks(clip, source)
    np.testing.assert_array_equal(masks[0] == 255, IS_DISC)
    assert "read as labels, every value but 0 is the object (--mask_kind matte reads them" in capsys.readouterr().out
    for path in clip.with_name(f"{clip.name}_maskrcnn").iterdir():
        path.unlink()
    masks = import_masks(clip, source, "--mask_kind", "matte")
    np.testing.assert_array_equal(masks[0], disc(40))


def test_a_matte_has_no_numbers_of_objects(clip, tmp_path):
    source = save(tmp_path / "a", [disc(1)] * 6)
    with pytest.raises(UserError, match="--mask_kind matte is for masks without labels"):
        import_masks(clip, source, "--mask_kind", "matte", "--objects", "2")
    with pytest.raises(UserError, match="--mask_kind belongs to --method import"):
        preprocess_mask_rcnn.main(["--vid-path", str(clip), "--mask_kind", "labels"])


def test_masks_in_the_only_subfolder_are_found_and_several_subfolders_are_named(clip, tmp_path, capsys):
    save(tmp_path / "a" / "first", [disc(255)] * 6)
    np.testing.assert_array_equal(import_masks(clip, tmp_path / "a")[0], disc(255))
    assert "holds no pictures itself; those in first are taken" in capsys.readouterr().out
    save(tmp_path / "a" / "second", [disc(255)] * 6)
    for path in clip.with_name(f"{clip.name}_maskrcnn").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"its folders do \(first, second\); give one of them"):
        import_masks(clip, tmp_path / "a")


def test_255_beside_numbers_of_classes_is_void_where_it_is_the_smaller_part(tmp_path):
    labels = np.where(IS_DISC, 1, 0).astype(np.uint8)
    labels[:3] = 255
    masks = read_all(save(tmp_path / "a", [labels] * 2))
    np.testing.assert_array_equal(masks[0] == 255, IS_DISC)
    matte = np.where(IS_DISC, 255, 0).astype(np.uint8)
    matte[:3] = 1
    assert (read_all(save(tmp_path / "b", [matte] * 2))[0][IS_DISC] == 255).all()


def test_a_cut_out_that_fills_a_frame_is_the_object_there(tmp_path):
    photo = np.random.default_rng(0).integers(0, 90, (*SIZE[::-1], 3), np.uint8)
    pictures = [np.dstack((photo, opacity)) for opacity in (disc(255), np.full_like(disc(255), 255))]
    masks = read_all(save(tmp_path / "a", pictures))
    np.testing.assert_array_equal(masks[0], disc(255))
    assert (masks[1] == 255).all()


def test_thin_labels_and_large_numbers_are_labels(tmp_path):
    lines = np.zeros(SIZE[::-1], np.uint8)
    lines[::4] = lines[:, ::4] = 5
    np.testing.assert_array_equal(read_all(save(tmp_path / "a", [lines]))[0] > 0, lines > 0)
    numbers = np.where(IS_DISC, 100_000, 0).astype(np.int32)
    np.testing.assert_array_equal(read_all(save(tmp_path / "b", [numbers], suffix="tif"))[0] > 0, IS_DISC)


def test_a_grey_label_of_a_coloured_palette_is_a_label(tmp_path):
    davis = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128, 0, 128, 128, 128, 128, 128]
    labels = np.where(IS_DISC, 7, 0).astype(np.uint8)
    assert (read_all(save(tmp_path / "a", [labels], davis))[0][IS_DISC] == 255).all()


def test_masks_in_dpx_and_exr_are_read(tmp_path):
    from media.film import write_exr

    media.write_png(tmp_path / "0.png", np.dstack([disc(255)] * 3))
    ffmpeg("-i", tmp_path / "0.png", media.make_folder(tmp_path / "dpx") / "0.dpx")
    np.testing.assert_array_equal(read_all(tmp_path / "dpx")[0], disc(255))
    media.make_folder(tmp_path / "exr")
    write_exr(tmp_path / "exr" / "0.exr", {"A": (disc(255) / 255).astype(np.float16)})
    np.testing.assert_array_equal(read_all(tmp_path / "exr")[0], disc(255))


def test_photographs_as_masks_are_warned_about(clip, tmp_path, capsys):
    photo = np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    import_masks(clip, save(tmp_path / "a", [photo] * 6))
    assert "pictures of many colours without opacity are no usual masks" in capsys.readouterr().err


def test_pictures_that_belong_to_no_frame_are_counted(clip, tmp_path, capsys):
    import_masks(clip, save(tmp_path / "a", [disc(255)] * 8))
    assert "2 of 8 pictures belong to no frame and are left out" in capsys.readouterr().err


def test_masks_of_nothing_but_black_and_white_are_called_so(clip, tmp_path, capsys):
    import_masks(clip, save(tmp_path / "a", [disc(255)] * 6))
    assert "read as black and white masks, white is the object" in capsys.readouterr().out
