"""Pictures as people bring them: EXR, DPX, TGA, colour profiles, 16 bits, names; and edits that change nothing else."""

import av
import numpy as np
import OpenEXR
import pytest
from conftest import draw, ffmpeg, tiny_config
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile

import media
import only_edit
from command_line import UserError
from media.clip import open_clip
from media.decoding import read_video
from media.film import read_exr, write_exr
from preprocessing.extract import Span, extract_frames

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
# The matrix of Display P3 and the curve of sRGB, as phones write them, from a profile of primaries and white.
P3_PRIMARIES = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))


def test_linear_light_of_exr_is_shown_as_a_screen_does(tmp_path):
    linear = np.array([[[0, 0.0031308, 0.2140411], [0.5, 1, 7]]], np.float32)
    write_exr(tmp_path / "0.exr", {"RGB": linear})
    np.testing.assert_array_equal(media.read_rgb(tmp_path / "0.exr"), [[[0, 10, 127], [188, 255, 255]]])
    np.testing.assert_array_equal(media.read_picture(tmp_path / "0.exr"), linear)
    assert media.image_size(tmp_path / "0.exr") == (2, 1)


def test_the_window_that_an_exr_shows_is_read_and_not_what_is_stored(tmp_path):
    stored = np.arange(5 * 6 * 3, dtype=np.float16).reshape(5, 6, 3)
    header = {"dataWindow": ((-1, 2), (4, 6)), "displayWindow": ((0, 0), (7, 5))}
    with OpenEXR.File(header, {"RGB": stored}) as file:
        file.write(str(tmp_path / "0.exr"))
    shown = read_exr(tmp_path / "0.exr")
    assert shown.shape[:2] == (6, 8)
    np.testing.assert_array_equal(shown[2:6, 0:5], stored[:4, 1:])
    assert not shown[:2].any() and not shown[:, 5:].any()


@pytest.mark.parametrize("suffix", ["dpx", "tga", "png", "bmp", "tif"])
def test_pictures_of_8_bits_are_read_exactly(tmp_path, suffix):
    media.write_png(tmp_path / "source.png", PICTURE)
    ffmpeg("-i", tmp_path / "source.png", tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(media.read_rgb(tmp_path / f"a.{suffix}"), PICTURE)
    assert media.image_size(tmp_path / f"a.{suffix}") == (32, 24)


def test_pictures_of_16_and_10_bits_keep_them(tmp_path):
    deep = PICTURE.astype(np.uint16) * 251
    media.write_png(tmp_path / "a.png", deep)
    np.testing.assert_array_equal(media.read_picture(tmp_path / "a.png"), deep)
    np.testing.assert_array_equal(media.read_rgb(tmp_path / "a.png"), deep >> 8)
    ffmpeg("-i", tmp_path / "a.png", "-pix_fmt", "gbrp10be", tmp_path / "a.dpx")
    ten_bits = media.read_picture(tmp_path / "a.dpx")
    assert ten_bits.dtype == np.uint16
    assert np.abs(ten_bits.astype(int) - deep).max() <= 65535 / 1023


def display_p3() -> bytes:
    """Return a colour profile of Display P3: its primaries with the curve of sRGB."""
    x, y = np.array(P3_PRIMARIES).T
    primaries = np.stack((x / y, np.ones(3), (1 - x - y) / y))
    white = np.array([0.95047, 1, 1.08883])  # D65
    matrix = primaries * np.linalg.solve(primaries, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = bradford @ [0.9642, 1, 0.8249] / (bradford @ white)
    matrix = np.linalg.inv(bradford) @ np.diag(scale) @ bradford @ matrix
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(data[i : i + 4]): int.from_bytes(data[i + 4 : i + 8], "big") for i in range(132, 132 + 12 * data[131], 12)
    }
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True):
        data[tags[name] + 8 : tags[name] + 20] = (column * 65536).round().astype(">i4").tobytes()
    return bytes(data).replace("sRGB".encode("utf-16-be"), "P3  ".encode("utf-16-be")).replace(b"sRGB", b"P3  ")


def test_display_p3_becomes_srgb(tmp_path):
    color = Image.new("RGB", (8, 8), (200, 60, 60))
    color.save(tmp_path / "a.jpg", quality=100, subsampling=0, icc_profile=display_p3())
    assert np.abs(media.read_rgb(tmp_path / "a.jpg")[4, 4].astype(int) - (217, 42, 51)).max() <= 3
    with_opacity = color.convert("RGBA")
    with_opacity.putalpha(128)
    with_opacity.save(tmp_path / "a.png", icc_profile=display_p3())
    edit = media.read_edit(tmp_path / "a.png")[4, 4] * 255
    assert np.abs(edit - np.array([217, 42, 51, 255]) * 128 / 255).max() <= 3


def test_a_profile_of_srgb_changes_nothing_and_a_damaged_one_is_named(tmp_path, capsys):
    image = Image.fromarray(PICTURE)
    image.save(tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    np.testing.assert_array_equal(media.read_rgb(tmp_path / "a.png"), PICTURE)
    image.save(tmp_path / "b.png", icc_profile=b"nonsense" * 30)
    np.testing.assert_array_equal(media.read_rgb(tmp_path / "b.png"), PICTURE)
    assert "a colour profile cannot be used" in capsys.readouterr().err


def test_two_pictures_of_one_name_are_refused(tmp_path):
    for name in ("00.jpg", "00.png", "01.png"):
        Image.fromarray(PICTURE).save(tmp_path / name)
    with pytest.raises(UserError, match=r"holds 00\.jpg and 00\.png, two pictures of one name; keep one kind"):
        open_clip(tmp_path, tiny_config(tmp_path, tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ["-002", "-001", "000", "001"],
        ["shot_-10", "shot_-9", "shot_0", "shot_9", "shot_10"],
        ["f-2", "f-1", "f0", "f1"],
        ["frame-1", "frame-2", "frame-10"],  # here the hyphen is none
        ["2024-01-05", "2024-01-10"],
    ],
)
def test_numbers_in_names_sort_as_numbers_negative_ones_too(tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.png").touch()
    assert [path.stem for path in media.list_images(tmp_path)] == names


def test_a_folder_without_known_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "0.cr2").touch()
    with pytest.raises(UserError, match=r"holds \.cr2 files, which are not read as pictures; convert them to one of"):
        open_clip(tmp_path / "raw", tiny_config(tmp_path, tmp_path))
    media.write_png(media.make_folder(tmp_path / "all" / "left") / "0.png", PICTURE)
    with pytest.raises(UserError, match=r"holds no pictures itself, but its folders do \(left\)"):
        open_clip(tmp_path / "all", tiny_config(tmp_path, tmp_path))


@pytest.mark.parametrize("name", ["a.exr", "a.dpx", "a.tga"])
def test_a_damaged_picture_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"SDPX" + b"nonsense" * 5)
    for read in (media.read_rgb, media.image_size, media.read_picture):
        with pytest.raises(UserError, match=rf"{name}: .*(can be read|incomplete|damaged)"):
            read(tmp_path / name)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_picture_is_one_line(tmp_path, share):
    write_exr(tmp_path / "a.exr", {"RGB": np.random.default_rng(0).random((40, 40, 3)).astype(np.float32)})
    media.write_png(tmp_path / "a.png", PICTURE.astype(np.uint16) * 251)
    for name in ("a.exr", "a.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError, match=rf"{name}: .*(can be read|incomplete|damaged)"):
            media.read_picture(tmp_path / name)


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels", "nowhere"])
def test_the_size_of_a_png_is_that_of_the_upright_picture(tmp_path, place):
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[media.images.EXIF_ORIENTATION] = 6
    Image.new("RGB", (30, 20)).save(path, **({} if place == "nowhere" else {"exif": exif}))
    if place == "after the pixels":
        content = path.read_bytes()
        begin = content.index(b"eXIf") - 4
        end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
        path.write_bytes(content[:begin] + content[end:-12] + content[begin:end] + content[-12:])
    assert media.image_size(path) == ((30, 20) if place == "nowhere" else (20, 30))
    assert media.read_rgb(path).shape[1::-1] == media.image_size(path)


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path, monkeypatch):
    media.write_png(tmp_path / "frame.png", np.zeros((20, 30, 3), np.uint8))

    def fail(_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImageFile, "load", fail)
    assert media.image_size(tmp_path / "frame.png") == (30, 20)


def test_odd_exr_files_are_read(tmp_path):
    """Mixed numbers, one layer with a name, values that are no numbers."""
    red, others = np.full((4, 6), 0.5, np.float16), np.full((4, 6), 0.25, np.float32)
    write_exr(tmp_path / "mixed.exr", {"R": red, "G": others, "B": others})
    write_exr(tmp_path / "layer.exr", {"beauty.R": others, "beauty.G": others, "beauty.B": others})
    others[0, 0] = np.nan
    write_exr(tmp_path / "nan.exr", {"R": others, "G": others, "B": others})
    np.testing.assert_array_equal(media.read_picture(tmp_path / "mixed.exr")[1, 1], [0.5, 0.25, 0.25])
    np.testing.assert_array_equal(media.read_picture(tmp_path / "layer.exr")[1, 1], [0.25] * 3)
    np.testing.assert_array_equal(media.read_rgb(tmp_path / "nan.exr")[0, :2, 0], [0, 137])


def test_grey_pictures_of_16_bits_keep_them(tmp_path):
    grey = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    media.write_png(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(media.read_picture(tmp_path / "a.png"), np.repeat(grey[..., None], 3, -1))


def test_a_video_of_10_bits_gives_frames_that_keep_them(tmp_path):
    for t in range(3):
        media.write_png(tmp_path / f"{t}.png", np.roll(PICTURE.astype(np.uint16) * 257, t, 1))
    ffmpeg("-i", tmp_path / "%d.png", "-c:v", "ffv1", "-pix_fmt", "gbrp10le", tmp_path / "a.mkv")
    extract_frames(tmp_path / "a.mkv", tmp_path / "clip", Span(), allow_cuts=True, max_frames=9)
    frame = media.read_picture(tmp_path / "clip" / "00000.png")
    assert frame.dtype == np.uint16
    assert len(np.unique(frame & 0xFF)) > 4


KINDS = ["8 bits", "16 bits", "halves"]


@pytest.fixture(scope="module", params=KINDS)
def deep_run(request, tmp_path_factory):
    """Folder of a run on frames of 8 bits, 16 bits or linear halves (EXR), and the clip's folder."""
    from training.runs import start_run

    clip = draw(tmp_path_factory.mktemp("data"))
    random = np.random.default_rng(0)
    for path in media.list_images(clip):
        frame = media.read_rgb(path)
        if request.param == "16 bits":
            media.write_png(path, frame.astype(np.uint16) * 256 + random.integers(0, 256, frame.shape, np.uint16))
        if request.param == "halves":
            path.unlink()
            for flow in clip.with_name("demo_flow").glob(f"*{path.name}*"):
                flow.rename(flow.with_name(flow.name.replace(path.name, f"{path.stem}.exr")))
            linear = 4 * media.from_display(frame / np.float32(255), np.float32)  # some light is brighter than white
            write_exr(path.with_suffix(".exr"), {"RGB": linear.astype(np.float16)})
    trainer = start_run(tiny_config(clip, tmp_path_factory.mktemp("runs")))
    trainer.run()
    return trainer.folder, clip


def read_edited(folder, kind) -> list[np.ndarray]:
    """Read the frames of an edited video of a lossless kind at their depth."""
    if kind == "ffv1":
        return list(read_video(folder / "edited_demo.mkv"))
    return [media.read_picture(path) for path in media.list_images(folder / "edited_demo")]


@pytest.mark.parametrize("kind", ["png", "ffv1", "exr"])
def test_pixels_without_paint_stay_to_the_last_bit(deep_run, tmp_path, kind):
    run, clip = deep_run
    paint = np.zeros((32, 48, 4), np.uint8)
    paint[10:20, 12:24] = (255, 0, 0, 255)
    media.write_png(tmp_path / "paint.png", paint)
    flags = [f"--trained_model_folder={run}", "--edit_space", "native", "--edit_frame", f"0:{tmp_path / 'paint.png'}"]
    only_edit.main([*flags, f"--output_folder={tmp_path / 'out'}", "--format", kind])
    only_edit.main([*flags, f"--output_folder={tmp_path / 'alone'}", "--only_edit_layer", "--format", "exr"])
    opacity = [read_exr(path)[..., 3] for path in media.list_images(tmp_path / "alone" / "edited_demo")]
    sources = [media.read_picture(path) for path in media.list_images(clip)]
    if kind == "exr":
        sources = [media.depth.make_linear(source) for source in sources]
    else:
        sources = [media.encode_picture(source) for source in sources]
    edited = read_edited(tmp_path / "out", kind)
    assert {frame.dtype for frame in edited} == {sources[0].dtype}
    is_changed, is_painted = (np.stack(edited) != np.stack(sources)).any(-1), np.stack(opacity) > 0
    assert 0 < is_painted.sum() < 0.9 * is_painted.size
    assert is_changed[is_painted].mean() > 0.3
    assert not is_changed[~is_painted].any()


def test_the_edit_alone_has_opacity_in_exr_and_ffv1(deep_run, tmp_path):
    run, _ = deep_run
    paint = np.zeros((32, 48, 4), np.uint8)
    paint[10:20, 12:24] = (255, 0, 0, 255)
    media.write_png(tmp_path / "paint.png", paint)
    for kind in ("exr", "ffv1"):
        flags = [f"--trained_model_folder={run}", f"--output_folder={tmp_path / kind}", "--only_edit_layer"]
        only_edit.main([*flags, "--format", kind, "--edit_frame", f"0:{tmp_path / 'paint.png'}"])
    opacity = next(read_video(tmp_path / "ffv1" / "edited_demo.mkv", alpha=True))
    assert opacity.max() == 255 and opacity.min() == 0
    rgba = read_exr(media.list_images(tmp_path / "exr" / "edited_demo")[0])
    assert rgba.shape[2] == 4 and rgba[..., 3].min() == 0 < rgba[..., 3].max()


def test_the_edit_alone_over_the_source_is_the_edited_video_in_linear_light(deep_run, tmp_path):
    run, clip = deep_run
    paint = np.zeros((32, 48, 4), np.uint8)
    paint[10:20, 12:24] = (255, 0, 0, 120)
    media.write_png(tmp_path / "paint.png", paint)
    flags = [f"--trained_model_folder={run}", "--format", "exr", "--edit_frame", f"0:{tmp_path / 'paint.png'}"]
    only_edit.main([*flags, f"--output_folder={tmp_path / 'video'}"])
    only_edit.main([*flags, f"--output_folder={tmp_path / 'alone'}", "--only_edit_layer"])
    folders = (clip, tmp_path / "video" / "edited_demo", tmp_path / "alone" / "edited_demo")
    source, video, alone = (media.read_picture(media.list_images(folder)[0]) for folder in folders[:2] + folders[:1])
    alone = read_exr(media.list_images(folders[2])[0]).astype(np.float32)
    source = media.depth.make_linear(source).astype(np.float32)
    composite = alone[..., :3] + (1 - alone[..., 3:]) * source
    is_dark = (source <= 1).all(
        -1
    )  # Paint over light that is brighter than a screen shows is composited on the screen.
    assert np.abs(composite - video)[is_dark].max() < 0.01


def test_a_file_of_film_has_the_tags_of_its_colours(tmp_path):
    with media.VideoWriter(tmp_path / "a.mp4", 10) as video:
        video.write(PICTURE)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)
