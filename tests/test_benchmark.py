"""The benchmark: figures against exact truth, one table, resumable."""

import json

import numpy as np
import pytest
from conftest import ROOT, run_script, tiny_config, write_config

from benchmarks.alignment import drifts, errors_px
from benchmarks.measure import measure_against_scene, placement_errors
from benchmarks.table import markdown
from implicit_neural_networks import AtlasModel
from media.clip import open_clip
from rendering.frame_store import FrameStore
from rendering.frames import Frame
from rendering.trained_run import TrainedRun
from scenes.catalogue import SCENES
from scenes.files import write_scene


@pytest.fixture(scope="module")
def scene():
    return SCENES["pan"](96, 54, 8)


def normalized(scene, places):
    """Photograph pixels of each layer as places in its atlas square."""
    sizes = [max(layer.photograph.shape) for layer in scene.layers]
    return np.stack([each / size * 2 - 1 for each, size in zip(places, sizes, strict=True)]).astype(np.float32)


@pytest.fixture
def perfect(scene, tmp_path):
    """A run that knows the truth: each layer's place is its photograph's, opacity is exact."""
    folder = write_scene(scene, tmp_path / "data")
    config = tiny_config(folder, tmp_path, maximum_number_of_frames=8)
    run = TrainedRun(AtlasModel(config), open_clip(folder, config))
    (tmp_path / "store").mkdir()
    store = FrameStore(tmp_path / "store")
    for t in range(scene.frames):
        uv = normalized(scene, scene.photograph_positions(t))
        store.add(Frame(t, uv, scene.frame(t).alpha, np.zeros((54, 96, 3), np.float32)))
    return run, store


def test_the_truth_itself_scores_perfectly(scene, perfect):
    run, store = perfect
    figures = measure_against_scene(run, store, scene)
    assert figures["iou"] == 1
    assert figures["boundary_f"] == 1
    assert figures["alpha_error"] < 1e-6
    assert figures["placement_px"] < 0.05
    assert figures["placement_within_1"] > 0.99
    assert figures["round_trip_psnr"] > 25
    assert figures["warp_error_short"] < 0.01


def test_a_mapping_that_drifts_is_measured_so(scene, perfect, tmp_path):
    """Each frame's places are those of 2 px further on per frame, so a mark is off by 2 px per frame between."""
    run, store = perfect
    (tmp_path / "drifting").mkdir()
    drifting = FrameStore(tmp_path / "drifting")
    for frame in store.frames():
        moved = [layer.to_photograph(scene.grid() + [2.0 * frame.t, 0], frame.t) for layer in scene.layers]
        drifting.add(Frame(frame.t, normalized(scene, moved), frame.alpha, frame.rgb))
    errors = placement_errors(run, drifting, scene)
    assert np.median(placement_errors(run, store, scene)) < 0.05
    assert 3 < np.median(errors) < 12


def test_a_run_of_another_size_is_an_error(perfect, scene):
    run, store = perfect
    with pytest.raises(ValueError, match="the run is 96 x 54 x 8, the scene 48 x 27 x 8"):
        measure_against_scene(run, store, SCENES["pan"](48, 27, 8))


def test_figures_without_truth_are_dashes_not_zeros():
    table = markdown([{"clip": "a", "psnr": 20.0, "iou": 0.9}, {"clip": "b", "psnr": 21.0}])
    assert "| b | 21.00 | - |" in table
    assert "placement" not in table


def test_the_benchmark_runs_writes_its_table_and_goes_on_where_it_was(tmp_path):
    config = write_config(tmp_path / "tiny.json", tiny_config(tmp_path, tmp_path, maximum_number_of_frames=5))
    arguments = (ROOT / "benchmarks" / "run.py", "--scenes", "cross", "--size", 48, 28, "--frames", 5, "--budgets", 1)
    arguments += ("--configs", config, "--output", tmp_path / "out")
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert row["frames"] == 5
    assert row["seconds"] >= 1
    assert {"psnr", "iou", "boundary_f", "alpha_error", "placement_px", "round_trip_psnr"} <= row.keys()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results.md", "results.csv", "results.png"} <= names
    assert (tmp_path / "out" / "cross_tiny_1s" / "sheet.png").exists()
    assert "there already" in run_script(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "dragon"], "no scene 'dragon'; there are: bend, cross, demo"),
        (["--scenes", "--clips", "nowhere"], "nowhere: no such folder of clips"),
    ],
)
def test_a_wrong_selection_is_named(tmp_path, arguments, message):
    done = run_script(ROOT / "benchmarks" / "run.py", *arguments, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_transforms_refined_over_all_frames_drift_less_than_chained_ones(tmp_path):
    rows = {label: errors for _, label, *errors in drifts("pan", (320, 180), 36, tmp_path)}
    assert rows.keys() == {"object", "background"}
    for chained, _, refined, _, start, _ in rows.values():
        assert refined < 0.8 * chained
        assert start < 0.8 * refined


def test_drift_is_measured_from_where_the_truth_carries_points(scene):
    still = np.tile(np.eye(3), (8, 1, 1))
    mean, largest = errors_px(scene, 1, still)  # the camera pans: nothing but the middle frame fits
    assert largest > mean > 1.0
