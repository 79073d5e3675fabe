"""Reading a clip: which files are accepted, and the messages for those that are not."""

import numpy as np
import pytest
import torch
from conftest import draw, tiny_config
from PIL import Image

import media
from command_line import UserError
from media.clip import open_clip
from media.flows import FORWARD
from unwrap_utils import load_video, normalize


def open_with_defaults(folder, **changes):
    """Return the clip in a folder, with the settings of `tiny_config` except for the changes."""
    return open_clip(folder, tiny_config(folder, folder.parent / "runs", **changes))


def load(folder, **changes):
    """Return the video of the clip in a folder, on the CPU."""
    return load_video(open_with_defaults(folder, **changes), torch.device("cpu"))


def flow_folder(clip):
    return clip.with_name(clip.name + "_flow")


def mask_folder(clip):
    return clip.with_name(clip.name + "_maskrcnn")


def test_a_clip_is_read_at_its_own_size_and_speed(clip_folder):
    clip = open_with_defaults(clip_folder)
    assert (len(clip), clip.width, clip.height, clip.fps) == (4, 48, 32, 12.0)
    video = load_video(clip, torch.device("cpu"))
    assert video.frames.dtype == torch.uint8
    assert video.masks.dtype == torch.uint8
    assert video.flow_steps.dtype == torch.int16
    np.testing.assert_array_equal(video.frames[1], clip.frame(1))


def test_stored_flow_is_exact_to_a_thousandth_of_a_pixel(clip_folder):
    clip, video = open_with_defaults(clip_folder), load(clip_folder)
    y, x = torch.where(video.flow_valid[FORWARD, 0])
    zero = torch.zeros_like(x)
    stored = video.flow_px(zero, zero, y, x)
    np.testing.assert_allclose(stored, clip.flow(0, FORWARD)[y, x], atol=1e-3)


def test_the_last_frame_has_no_forward_flow_and_the_first_no_backward_flow(clip_folder):
    video = load(clip_folder)
    assert not video.flow_valid[0, -1].any()
    assert not video.flow_valid[1, 0].any()


def test_x_and_y_share_a_scale_and_the_last_frame_lies_before_one():
    corners = torch.tensor([[0.0, 0, 0], [100, 50, 9]])
    torch.testing.assert_close(normalize(corners, (10, 50, 100)), torch.tensor([[-1.0, -1, -1], [1, 0, 0.8]]))


def test_a_missing_and_an_empty_frames_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; put the frames there"):
        open_with_defaults(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no images"):
        open_with_defaults(tmp_path / "empty")


def test_one_frame_is_not_a_clip(clip_folder):
    for path in sorted(clip_folder.glob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(UserError, match=r"holds one frame, 00000\.png; at least 2"):
        open_with_defaults(clip_folder)


def test_a_frame_of_another_size_is_named(clip_folder):
    Image.new("RGB", (50, 32)).save(clip_folder / "00002.png")
    with pytest.raises(UserError, match=r"00002\.png is 50 x 32, 00000\.png is 48 x 32"):
        open_with_defaults(clip_folder)


def test_the_folder_of_a_run_is_no_clip(clip_folder):
    Image.new("RGB", (50, 32)).save(clip_folder / "00002.png")
    (clip_folder / "checkpoint").touch()
    with pytest.raises(
        UserError, match="holds checkpoint, so it is the folder of a run; give the folder of the frames"
    ):
        open_with_defaults(clip_folder)


@pytest.mark.parametrize("damage", [lambda data: b"not an image", lambda data: data[: len(data) // 2]])
def test_an_unreadable_or_truncated_frame_is_named(clip_folder, damage):
    path = clip_folder / "00001.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"00001\.png: (not an image|damaged or incomplete)"):
        load(clip_folder)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK"])
def test_grey_opaque_palette_and_deep_frames_are_accepted(clip_folder, mode):
    path = clip_folder / "00001.png"
    image = Image.open(path).convert("RGB")
    grey = np.asarray(image.convert("L"))
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif mode == "CMYK":
        path.unlink()
        image.convert("CMYK").save(clip_folder / "00001.tif")
        path = clip_folder / "00001.tif"
    else:
        image.convert(mode).save(path)
    rgb = media.read_rgb(path)
    assert rgb.shape == (32, 48, 3)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.mean(-1) - np.asarray(image).mean(-1)).mean() < 12


def test_a_portrait_clip_with_odd_sides_and_two_frames_works(tmp_path):
    folder = draw(tmp_path / "data", width=27, height=41, frames=2)
    video = load(folder)
    assert video.size == (2, 41, 27)


def test_missing_masks_are_named_with_the_remedy(clip_folder):
    (mask_folder(clip_folder) / "00002.png").unlink()
    with pytest.raises(UserError, match=r"demo_maskrcnn has no mask for 1 of 4 frames, the first is 00002\.png"):
        load(clip_folder)


def test_a_clip_without_masks_names_the_script(clip_folder):
    for path in mask_folder(clip_folder).iterdir():
        path.unlink()
    mask_folder(clip_folder).rmdir()
    with pytest.raises(UserError, match=r"demo_maskrcnn: no such folder; run python preprocess_mask_rcnn\.py"):
        load(clip_folder)


def test_extra_masks_are_ignored_with_a_warning(clip_folder, capsys):
    Image.new("L", (48, 32)).save(mask_folder(clip_folder) / "stray.png")
    load(clip_folder)
    assert "1 masks belong to no frame and are ignored, the first is stray.png" in capsys.readouterr().err


def test_a_mask_of_another_aspect_is_named(clip_folder):
    Image.new("L", (32, 48)).save(mask_folder(clip_folder) / "00001.png")
    with pytest.raises(UserError, match=r"00001\.png is 32 x 48, the frames are 48 x 32"):
        load(clip_folder)


def test_a_clip_with_only_empty_masks_gives_a_warning(clip_folder, capsys):
    for path in mask_folder(clip_folder).iterdir():
        Image.new("L", (48, 32)).save(path)
    load(clip_folder)
    assert "all masks are empty; everything will be background" in capsys.readouterr().err


def test_missing_flow_names_the_file_and_the_script(clip_folder):
    (flow_folder(clip_folder) / "00002.png_00001.png.npy").unlink()
    with pytest.raises(UserError) as caught:
        load(clip_folder)
    assert (
        "demo_flow has no 00002.png_00001.png.npz (or .npy); run python preprocess_optical_flow.py --vid-path"
        in str(caught.value)
    )


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (np.zeros((32, 48)), r"has shape \(32, 48\), expected \(height, width, 2\)"),
        (np.zeros((48, 32, 2)), "is 32 x 48, of another aspect than the frames"),
        (np.full((32, 48, 2), np.nan), "holds NaN or infinite values"),
    ],
)
def test_flow_of_the_wrong_shape_or_with_nan_is_named(clip_folder, flow, message):
    np.save(flow_folder(clip_folder) / "00001.png_00002.png.npy", flow.astype(np.float32))
    with pytest.raises(UserError, match=message):
        load(clip_folder)


def test_a_cut_flow_file_is_named(clip_folder):
    path = flow_folder(clip_folder) / "00001.png_00002.png.npy"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="not a whole flow file"):
        load(clip_folder)


def test_a_working_size_of_another_aspect_gives_a_warning_that_offers_null(clip_folder, capsys):
    open_with_defaults(clip_folder, resx=48, resy=48)
    assert "stretches frames of 48 x 32; set one of resx, resy to null" in capsys.readouterr().err


@pytest.mark.parametrize(("resx", "resy", "size"), [(None, None, (48, 32)), (24, None, (24, 16)), (None, 8, (12, 8))])
def test_a_side_left_null_keeps_the_aspect(clip_folder, resx, resy, size):
    clip = open_with_defaults(clip_folder, resx=resx, resy=resy)
    assert (clip.width, clip.height) == size
    assert clip.frame(0).shape == (size[1], size[0], 3)


def test_a_file_without_the_frame_rate_is_named(clip_folder):
    clip_folder.with_name("demo.json").write_text("{}")
    with pytest.raises(UserError, match=r'demo\.json: expected JSON such as \{"fps": 25\}'):
        open_with_defaults(clip_folder)


def test_a_long_clip_lies_on_disk_and_is_read_the_same(clip_folder, monkeypatch):
    import unwrap_utils

    in_memory = load(clip_folder)
    monkeypatch.setattr(unwrap_utils, "IN_MEMORY_BYTES", 0)
    before = sorted(clip_folder.parent.iterdir())
    on_disk = load(clip_folder)
    assert sorted(clip_folder.parent.iterdir()) == before, "the file on disk has no name"
    for name in ("frames", "masks", "flow_steps", "flow_valid"):
        assert torch.equal(getattr(in_memory, name), getattr(on_disk, name))
    on_disk.frames[0] = 0  # the mapping is writable, like memory
    assert not on_disk.frames[0].any()
