"""The benchmark: metrics that need exact ground truth, one table, and continuing after a stop."""

import json
import re
import subprocess

import numpy as np
import pytest
from conftest import ROOT, draw, run_script, tiny_config, write_config, write_exact_flow

from benchmarks import gpu, whole_way
from benchmarks.alignment import alignment_errors, transform_errors_px
from benchmarks.busy import busy_process
from benchmarks.convergence import QualityCurve, time_to_psnr, time_to_quality
from benchmarks.measure import measure_against_scene, placement_errors
from benchmarks.table import markdown_table
from command_line import UserError
from implicit_neural_networks import AtlasModel
from media import VideoWriter
from media.clip import open_clip
from rendering.frame_store import FrameStore
from rendering.frames import Frame, render_frame
from rendering.trained_run import TrainedRun
from scenes.catalogue import SCENES
from scenes.files import write_scene
from training.loop import Trainer
from training.stopping import Stopwatch


@pytest.fixture(scope="module")
def scene():
    return SCENES["pan"](96, 54, 8)


def photograph_uv(scene, positions):
    """Convert photograph pixels of each layer (L, H, W, 2) to uv in the layer's own square."""
    sides = [max(layer.photograph.shape) for layer in scene.layers]
    return np.stack([points / side * 2 - 1 for points, side in zip(positions, sides, strict=True)]).astype(np.float32)


@pytest.fixture
def perfect_run(scene, tmp_path):
    """A run with the true mappings, which lead to the layers' photographs, and the true opacity; and its frames."""
    folder = write_scene(scene, tmp_path / "data")
    config = tiny_config(folder, tmp_path, maximum_number_of_frames=8)
    run = TrainedRun(AtlasModel(config), open_clip(folder, config))
    (tmp_path / "store").mkdir()
    store = FrameStore(tmp_path / "store")
    for t in range(scene.frames):
        uv = photograph_uv(scene, scene.photograph_positions(t))
        store.add(Frame(t, uv, scene.frame(t).alpha, np.zeros((54, 96, 3), np.float32)))
    return run, store


def test_a_run_that_equals_the_truth_has_perfect_metrics(scene, perfect_run):
    run, store = perfect_run
    metrics = measure_against_scene(run, store, scene)
    assert metrics["iou"] == 1
    assert metrics["boundary_f"] == 1
    assert metrics["alpha_error"] < 1e-6
    assert metrics["placement_px"] < 0.05
    assert metrics["placement_within_1"] > 0.99
    assert metrics["round_trip_psnr"] > 25
    assert metrics["warp_error_short"] < 0.01
    assert "shape_psnr" in metrics


def test_the_placement_error_grows_with_the_drift_of_a_mapping(scene, perfect_run, tmp_path):
    """The mapping drifts by 2 px per frame, so a mark is off by 2 px for each frame between mark and target."""
    run, store = perfect_run
    (tmp_path / "drifting").mkdir()
    drifting = FrameStore(tmp_path / "drifting")
    for frame in store.frames():
        moved = [layer.to_photograph(scene.grid() + [2.0 * frame.t, 0], frame.t) for layer in scene.layers]
        drifting.add(Frame(frame.t, photograph_uv(scene, moved), frame.alpha, frame.rgb))
    errors = placement_errors(run, drifting, scene)
    assert np.median(placement_errors(run, store, scene)) < 0.05
    assert 3 < np.median(errors) < 12


def test_a_run_of_another_size_is_an_error(perfect_run, scene):
    run, store = perfect_run
    with pytest.raises(ValueError, match="the run is 96 x 54 x 8, the scene 48 x 27 x 8"):
        measure_against_scene(run, store, SCENES["pan"](48, 27, 8))


def test_metrics_without_truth_are_dashes_and_not_zeros():
    table = markdown_table([{"clip": "a", "psnr": 20.0, "iou": 0.9}, {"clip": "b", "psnr": 21.0}])
    assert "| b | 21.00 | - |" in table
    assert "placement" not in table


@pytest.mark.slow
def test_the_benchmark_writes_its_table_and_does_not_repeat_finished_cases(tmp_path):
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
    assert (tmp_path / "out" / "cross_tiny_1s" / "worst.png").exists()
    assert "has a result, skipped" in run_script(*arguments).stdout


@pytest.mark.slow
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


@pytest.mark.slow
def test_transforms_refined_over_all_frames_drift_less_than_chained_ones(tmp_path):
    rows = {layer: errors for layer, *errors in alignment_errors("pan", (240, 136), 36, tmp_path)}
    assert rows.keys() == {"object", "background"}
    for chained, _, refined, _, start, _ in rows.values():
        assert refined < 0.8 * chained
        assert start < 0.8 * refined


def test_alignment_errors_are_distances_from_the_true_positions(scene):
    still = np.tile(np.eye(3), (8, 1, 1))
    mean, largest = transform_errors_px(scene, 1, still)  # The camera pans, so that only the middle frame fits.
    assert largest > mean > 1.0


def test_the_benchmark_beside_a_busy_process_measures_every_condition_and_ends_the_process(tmp_path):
    clip = draw(tmp_path / "data")
    result = run_script("benchmarks/busy.py", "--clip", clip, "--seconds", 0.2)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]] == ["alone", "normal priority", "lowest priority"]
    assert rows[1].count("(100 %)") == 3


def test_the_busy_process_is_ended_even_if_the_measurement_fails(monkeypatch):
    started = []
    start = subprocess.Popen

    def record(*arguments, **options):
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    with pytest.raises(ZeroDivisionError), busy_process(19):
        assert started[0].poll() is None
        raise ZeroDivisionError
    assert started[0].poll() is not None


def test_the_time_to_quality_is_when_the_psnr_first_reaches_a_share_of_the_last_one():
    points = [(1.0, 20.0), (4.0, 28.6), (7.0, 28.4), (10.0, 29.8), (13.0, 30.0)]
    assert time_to_quality(points) == {"seconds_to_95": 4.0, "seconds_to_99": 10.0}
    assert time_to_psnr(points, 28.5) == 4.0
    assert time_to_psnr(points, 31.0) is None


def test_measuring_the_quality_does_not_use_up_the_time_budget(scene, tmp_path, monkeypatch):
    """Rendering a frame takes a hundred seconds of a clock that the test moves."""
    folder = write_scene(scene, tmp_path / "data")
    write_exact_flow(folder)
    trainer = Trainer(tiny_config(folder, tmp_path, maximum_number_of_frames=8), tmp_path)
    now = [0.0]

    def render_slowly(*arguments, **named_arguments):
        now[0] += 100
        return render_frame(*arguments, **named_arguments)

    trainer.stopwatch = Stopwatch(lambda: now[0])
    monkeypatch.setattr("benchmarks.convergence.render_frame", render_slowly)
    curve = QualityCurve(trainer)
    for step_s in (0.0, 1.0, 2.5):
        now[0] += step_s
        curve.measure_if_due()
    assert [seconds for seconds, _ in curve.points] == [0.0, 3.5]
    assert all(0 < quality < 60 for _, quality in curve.points)


@pytest.mark.slow
def test_the_benchmark_of_a_device_prints_every_table(tmp_path, capsys):
    """Without a GPU it measures the CPU; the figures say nothing at this size."""
    seconds = ["--seconds", "0.01", "--published_seconds", "0.01", "--grid_seconds", "0.5"]
    networks = write_config(tmp_path / "tiny.json", tiny_config(tmp_path, tmp_path))
    seconds += ["--network_config", str(networks)]
    gpu.main(["--device", "cpu", "--size", "96", "64", "--frames", "4", *seconds])
    printed = capsys.readouterr().out
    for row in ("| published loop |", "| tiles of 4 pixels, bfloat16 |", "| start, s |", "| edited frames per second"):
        assert row in printed
    assert "The grids reached the PSNR of the published loop" in printed
    with pytest.raises(UserError, match="--seconds is 0, expected more than 0"):
        gpu.main(["--seconds", "0"])


@pytest.mark.slow
def test_the_benchmark_of_the_whole_way_runs_every_script(tmp_path, capsys):
    scene = SCENES["pan"](128, 72, 8)
    with VideoWriter(tmp_path / "pan.mp4", 12, crf=6) as video:
        for t in range(8):
            video.write(scene.frame(t).rgb)
    whole_way.main([str(tmp_path / "pan.mp4"), "--time_budget", "3"])
    printed = capsys.readouterr().out
    rows = ("first picture", "first paintable result", "unwrap_video.py", "only_evaluate.py", "export_layers.py")
    for row in rows:
        assert f"| {row}" in printed
    assert "nan" not in printed
    with pytest.raises(UserError, match=r"has no unwrap_video\.py"):
        whole_way.main([str(tmp_path / "pan.mp4"), "--code", str(tmp_path)])


def test_the_benchmark_of_a_step_names_its_operators_and_its_floor(tmp_path):
    clip = draw(tmp_path, frames=4)
    result = run_script("benchmarks/grid_step.py", "--clip", clip, "--seconds", 0.2)
    assert result.returncode == 0, result.stderr
    for row in ("s per step, all cores", "reading atlases", "interpolating fields", "times the floor"):
        assert re.search(rf"\| {row} \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", result.stdout)
