"""Layered files: paint in .ora and .psd files is read back as the painting program shows it."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

import editing.layered_files
from command_line import UserError
from editing.layered_files import read_paint
from export.openraster import write_openraster
from export.photoshop import write_psd

RED, GREEN, CLEAR = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 0, 0)
SIZE = (12, 8)  # width and height of the images


def fill(color, size=SIZE):
    """Return a picture (h, w, 4) uint8 of one colour."""
    return np.broadcast_to(np.array(color, np.uint8), (size[1], size[0], 4)).copy()


def write_ora(path, stack: str, **pictures):
    """Write an OpenRaster file with this content of its outermost <stack>, and pictures by their name."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "image/openraster")
        archive.writestr("stack.xml", f'<image w="{SIZE[0]}" h="{SIZE[1]}"><stack>{stack}</stack></image>')
        for name, picture in pictures.items():
            content = io.BytesIO()
            Image.fromarray(picture).save(content, "PNG")
            archive.writestr(f"data/{name}.png", content.getvalue())
    return path


@pytest.fixture
def painted():
    """Paint in the left half, as the layers of an exported atlas, the uppermost first."""
    paint = fill(CLEAR)
    paint[:, :6] = (0, 255, 0, 128)
    return {"paint here": paint, "guide": fill(RED), "atlas": fill(RED)}


def test_the_atlas_and_the_guide_of_an_openraster_file_are_no_paint(tmp_path, painted):
    write_openraster(tmp_path / "a.ora", painted)
    (part,) = read_paint(tmp_path / "a.ora")
    assert part.blend is None
    np.testing.assert_allclose(part.rgba[:, :6], np.broadcast_to([0, 128 / 255, 0, 128 / 255], (8, 6, 4)), atol=1e-6)
    assert not part.rgba[:, 6:].any()


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 1 / 255), (16, 1 / 65535)])
def test_the_paint_of_a_photoshop_file_comes_back(tmp_path, painted, bits, tolerance):
    pytest.importorskip("psd_tools", reason="Photoshop files need psd-tools, which is not installed")
    paint = np.random.default_rng(0).random((8, 12, 4)).astype(np.float32)
    write_psd(tmp_path / "a.psd", {"paint here": paint, "atlas": painted["atlas"] / 255}, bits)
    (part,) = read_paint(tmp_path / "a.psd")
    expected = np.dstack((paint[..., :3] * paint[..., 3:], paint[..., 3:]))
    np.testing.assert_allclose(part.rgba, expected, atol=1.5 * tolerance)


def test_place_opacity_and_visibility_of_layers_count(tmp_path):
    small = fill(GREEN, (4, 3))
    stack = (
        '<layer name="hidden" src="data/red.png" visibility="hidden"/>'
        '<layer name="small" src="data/small.png" x="9" y="-1" opacity="0.5"/>'
    )
    (part,) = read_paint(write_ora(tmp_path / "a.ora", stack, red=fill(RED), small=small))
    assert (part.rgba[..., 3] > 0).sum() == 3 * 2  # the part of it that lies inside the image
    np.testing.assert_allclose(part.rgba[0, 11], [0, 0.5, 0, 0.5])


def test_layers_are_in_the_order_of_the_painting_program_and_groups_have_an_opacity(tmp_path):
    stack = (
        '<stack name="group" opacity="0.5"><layer name="upper" src="data/green.png"/></stack>'
        '<layer name="lower" src="data/red.png"/>'
    )
    (part,) = read_paint(write_ora(tmp_path / "a.ora", stack, green=fill(GREEN), red=fill(RED)))
    np.testing.assert_allclose(part.rgba[0, 0], [0.5, 0.5, 0, 1])


def test_blend_modes_of_layers_are_kept_and_unknown_ones_are_named(tmp_path, capsys):
    stack = (
        '<layer name="top" src="data/green.png" composite-op="svg:color-dodge"/>'
        '<layer name="shade" src="data/red.png" composite-op="svg:multiply"/>'
        '<layer name="base" src="data/green.png"/>'
    )
    parts = read_paint(write_ora(tmp_path / "a.ora", stack, green=fill(GREEN), red=fill(RED)))
    assert [part.blend for part in parts] == [None, "multiply", None]
    assert 'layer "top" has the blend mode color-dodge, which is not known here' in capsys.readouterr().err


def test_a_file_without_paint_is_refused(tmp_path, painted):
    write_openraster(tmp_path / "a.ora", {"guide": painted["guide"], "atlas": painted["atlas"]})
    with pytest.raises(
        UserError, match='no visible layer to paint on; paint in a layer of its own, such as "paint here"'
    ):
        read_paint(tmp_path / "a.ora")


def test_a_flattened_file_is_told_from_one_without_paint(tmp_path):
    with pytest.raises(UserError, match="a flattened image has none"):
        read_paint(write_ora(tmp_path / "a.ora", ""))


def test_a_file_is_read_again_after_it_was_saved(tmp_path):
    path = tmp_path / "a.ora"
    stack = '<layer name="paint" src="data/picture.png"/>'
    first = read_paint(write_ora(path, stack, picture=fill(RED)))[0].rgba
    again = read_paint(write_ora(path, stack, picture=fill(CLEAR)))[0].rgba
    assert first.any()
    assert not again.any()


@pytest.mark.parametrize("name", ["a.ora", "a.psd"])
def test_a_damaged_or_missing_file_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        read_paint(tmp_path / name)
    (tmp_path / name).write_bytes(b"not a picture")
    with pytest.raises(UserError, match="damaged, or no"):
        read_paint(tmp_path / name)


def test_a_half_written_photoshop_file_is_one_line(tmp_path, painted):
    pytest.importorskip("psd_tools", reason="Photoshop files need psd-tools, which is not installed")
    write_psd(tmp_path / "a.psd", {"paint here": painted["paint here"] / 255}, 8)
    whole = (tmp_path / "a.psd").read_bytes()
    for length in (10, len(whole) // 3, len(whole) // 2):
        (tmp_path / "half.psd").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"half\.psd: "):
            read_paint(tmp_path / "half.psd")


def test_without_the_library_a_photoshop_file_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.psd").write_bytes(b"8BPS")
    monkeypatch.setattr(editing.layered_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install psd-tools"):
        read_paint(tmp_path / "a.psd")
