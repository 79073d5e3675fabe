"""Flow files: formats, sizes, writing in threads, files of other programs."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from conftest import draw, run_script

import preprocess_optical_flow
from alignment.dis_flow import DisFlow
from command_line import UserError
from config import Config
from media.clip import open_clip
from media.flows import DamagedFlow, find_flow, flow_size, read_flow, write_flow
from preprocessing.flow_pairs import Pair, write_in_threads
from scenes.catalogue import SCENES


@pytest.fixture
def flow() -> np.ndarray:
    """The flow (H, W, 2) that DIS estimates between two frames: smooth motion of some pixels, with noise."""
    scene = SCENES["pan"](320, 180, 4)
    return DisFlow()(scene.frame(1).rgb, scene.frame(2).rgb)[0]


def test_compact_flow_keeps_what_matters_at_less_than_40_percent_of_the_published_size(tmp_path, flow):
    write_flow(tmp_path / "a.npz", flow)
    write_flow(tmp_path / "a.npy", flow)
    assert np.abs(flow).max() > 2
    np.testing.assert_allclose(read_flow(tmp_path / "a.npz"), flow, atol=1 / 100, rtol=2**-10)
    np.testing.assert_array_equal(read_flow(tmp_path / "a.npy"), flow)
    assert (tmp_path / "a.npz").stat().st_size < 0.4 * (tmp_path / "a.npy").stat().st_size
    assert flow_size(tmp_path / "a.npz") == flow_size(tmp_path / "a.npy") == (320, 180)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_half_written_file_counts_as_missing(tmp_path, flow, suffix):
    path = tmp_path / f"a{suffix}"
    write_flow(path, flow)
    whole = path.read_bytes()
    for length in (0, 50, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert flow_size(path) is None
        with pytest.raises(DamagedFlow, match="not a whole flow file"):
            read_flow(path)


def test_a_file_whose_middle_is_lost_counts_as_missing(tmp_path, flow):
    path = tmp_path / "a.npz"
    write_flow(path, flow)
    whole = bytearray(path.read_bytes())
    for start in range(200, len(whole) - 200, len(whole) // 12):
        broken = bytes(whole[:start]) + bytes(40) + bytes(whole[start + 40 :])
        path.write_bytes(broken)
        assert flow_size(path) is None
        with pytest.raises(DamagedFlow):
            read_flow(path)


def test_flow_that_is_not_finite_is_not_written(tmp_path, flow):
    flow[3, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        write_flow(tmp_path / "a.npz", flow)
    assert not list(tmp_path.iterdir())


def test_either_format_is_found(tmp_path, flow):
    assert find_flow(tmp_path, "0.png", "1.png") is None
    write_flow(tmp_path / "0.png_1.png.npy", flow)
    assert find_flow(tmp_path, "0.png", "1.png").suffix == ".npy"
    write_flow(tmp_path / "0.png_1.png.npz", flow)
    assert find_flow(tmp_path, "0.png", "1.png").suffix == ".npz"


def test_flow_on_all_cores_is_the_flow_of_one(tmp_path):
    frames = sorted(draw(tmp_path / "data", width=64, height=48, frames=10).iterdir())
    pairs = [Pair(a, b, tmp_path / f"{a.stem}.npz", None) for a, b in pairwise(frames)]
    assert len(list(write_in_threads(pairs, (64, 48), DisFlow))) == 9
    from media import read_rgb

    expected = DisFlow()(read_rgb(frames[4]), read_rgb(frames[5]))[0]
    np.testing.assert_allclose(read_flow(tmp_path / f"{frames[4].stem}.npz"), expected, atol=1 / 100, rtol=2**-10)


def write_flo(path, flow):
    """Write flow in the format of the Middlebury benchmark."""
    height, width = flow.shape[:2]
    path.write_bytes(struct.pack("<fii", 202021.25, width, height) + flow.astype("<f4").tobytes())


@pytest.fixture
def elsewhere(tmp_path):
    """A clip without flow, and a folder with its flow as another program writes it."""
    clip = draw(tmp_path / "data")
    source = clip.with_name("demo_flow")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in source.iterdir():
        a, b = (name.split(".")[0] for name in path.name.split(".png_"))
        write_flo(folder / f"{a}_{b}.flo", np.load(path))
        path.unlink()
    source.rmdir()
    return clip, folder


def test_flo_files_are_imported_and_scaled_to_the_size_asked_for(elsewhere):
    clip, folder = elsewhere
    preprocess_optical_flow.main(
        ["--vid-path", str(clip), "--method", "import", "--flow", str(folder), "--max_long_edge", "24"]
    )
    opened = open_clip(clip, Config(data_folder=str(clip), resx=None, resy=None))
    expected = read_flow(folder / "00001_00000.flo")
    assert flow_size(opened.flow_path(1, 1)) == (24, 16)
    assert np.abs(opened.flow(1, 1) - expected).mean() < 0.3
    assert np.abs(expected).mean() > 0.5


def test_a_missing_direction_is_named_before_anything_is_written(elsewhere):
    clip, folder = elsewhere
    (folder / "00002_00001.flo").unlink()
    done = run_script("preprocess_optical_flow.py", "--vid-path", clip, "--method", "import", "--flow", folder)
    assert done.returncode == 2
    assert "has no 00002_00001.flo" in done.stderr
    assert "Traceback" not in done.stderr
    assert not clip.with_name("demo_flow").exists()


def test_flow_of_another_aspect_is_refused(elsewhere):
    clip, folder = elsewhere
    write_flo(folder / "00000_00001.flo", np.zeros((48, 48, 2)))
    with pytest.raises(UserError, match=r"00000_00001\.flo: is 48 x 48, the frames are 48 x 32"):
        preprocess_optical_flow.main(["--vid-path", str(clip), "--method", "import", "--flow", str(folder)])


def test_the_published_format_is_written_when_asked_for(elsewhere):
    clip, _ = elsewhere
    preprocess_optical_flow.main(["--vid-path", str(clip), "--method", "dis", "--format", "npy"])
    flow = np.load(clip.with_name("demo_flow") / "00000.png_00001.png.npy")
    assert (flow.shape, flow.dtype) == ((32, 48, 2), np.float32)
