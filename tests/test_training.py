"""Runs can be repeated and resumed, and lose nothing when they are stopped or killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, curve, last_line, read_log, run_script, tiny_config, write_config

import media.checkpoints
import training.loop
from command_line import Stopped, UserError
from config import load_config
from media.checkpoints import read_checkpoint, write_checkpoint
from rendering.frame_store import FrameStore
from rendering.frames import Frame
from training.earlier_runs import find_newest_run
from training.log import Log
from training.loop import Trainer
from training.runs import resume_run, start_run
from training.stopping import StopSignal, Stopwatch


def test_the_same_config_gives_the_same_curve_and_another_seed_another(shared_clip, tmp_path):
    config = tiny_config(shared_clip, tmp_path)
    curves = []
    for seed in (0, 0, 1):
        trainer = start_run(replace(config, seed=seed, evaluate_every=100, results_folder_name=str(tmp_path / "r")))
        for _ in range(3):
            trainer.log_terms(trainer.step(), NoEvents(), NoBar())
        curves.append(curve(trainer.folder))
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


class NoEvents:
    """TensorBoard events that are not written."""

    def add_scalar(self, *_):
        pass


class NoBar:
    """A progress bar that is not shown."""

    def set_postfix(self, **_):
        pass


def test_frames_beyond_the_limit_are_left_out_with_a_warning(shared_clip, tmp_path, capsys):
    trainer = start_run(tiny_config(shared_clip, tmp_path, maximum_number_of_frames=3))
    assert len(trainer.clip) == 3
    assert "the clip has 4 frames, the first 3 are used" in capsys.readouterr().err


def test_a_run_folder_holds_all_documented_files(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert {"config.json", "checkpoint", "log.jsonl", "preview.png", "curve.png", "000004"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert load_config(finished_run / "config.json").iters_num == 4


def test_tensorboard_gets_the_published_names(finished_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished_run)).Reload()
    assert {"Loss/total", "Loss/color", "Loss/flow_alpha"} <= set(events.Tags()["scalars"])
    images = {"Train/atlas1", "Train/atlas2", "Train/recon_frame_0", "Train/recon_frame_end", "Input/rgb_0"}
    assert images <= set(events.Tags()["images"])


def test_the_schedule_drops_bootstrapping_and_global_rigidity_after_their_last_iteration(finished_run):
    rows = [row for row in read_log(finished_run) if "total" in row]
    assert ["bootstrapping" in row for row in rows] == [True, True, True, False]
    assert ["global_rigidity_background" in row for row in rows] == [True, True, False, False]


@pytest.mark.slow
def test_a_killed_run_continues_with_the_losses_of_an_uninterrupted_one(shared_clip, tmp_path):
    config = tiny_config(shared_clip, tmp_path / "whole", iters_num=40, evaluate_every=1000, checkpoint_every=7)
    uninterrupted = start_run(config)
    uninterrupted.run()
    path = write_config(
        tmp_path / "c.json", replace(config, results_folder_name=str(tmp_path / "killed"), iters_num=4000)
    )
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        folders = list((tmp_path / "killed").glob("*/log.jsonl"))
        if folders and len(folders[0].read_text().splitlines()) > 12:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = folders[0].parent
    iteration = read_checkpoint(folder / "checkpoint")["iteration"]
    assert iteration >= 7
    assert iteration % 7 == 0
    write_config(folder / "config.json", replace(load_config(folder / "config.json"), iters_num=max(40, iteration + 3)))
    resume_run(folder).run()
    resumed, expected = curve(folder), curve(uninterrupted.folder)
    assert set(expected) <= set(resumed)
    assert {iteration: resumed[iteration] for iteration in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_checkpoint_and_the_message_says_how_to_continue(shared_clip, tmp_path, number, code):
    config = tiny_config(
        shared_clip, tmp_path / "runs", iters_num=100_000, evaluate_every=100_000, checkpoint_every=100_000
    )
    path = write_config(tmp_path / "c.json", config)
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        path.stat().st_size for path in (tmp_path / "runs").glob("*/log.jsonl")
    ):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    folder = next((tmp_path / "runs").iterdir())
    iteration = read_checkpoint(folder / "checkpoint")["iteration"]
    assert iteration >= 1
    assert last_line(errors).endswith(f"holds iteration {iteration}. Continue with: python train.py --resume {folder}")
    assert "Traceback" not in errors


def test_a_deferred_signal_is_stored_and_any_other_signal_interrupts():
    stop = StopSignal()
    with stop.install():
        with stop.defer():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert stop.exit_code == 143


@pytest.mark.parametrize("representation", ["mlp", "grid"])
def test_the_last_evaluation_needs_no_memory_for_the_video_and_the_optimizer(
    shared_clip, tmp_path, monkeypatch, representation
):
    config = tiny_config(shared_clip, tmp_path, representation=representation, iters_num=2, evaluate_every=1)
    trainer = start_run(config)
    kept = [weakref.ref(trainer.learner.video), weakref.ref(trainer.learner.optimizer)]
    evaluate, alive = training.loop.evaluate, []

    def note_and_evaluate(*arguments, **options):
        alive.append([reference() is not None for reference in kept])
        return evaluate(*arguments, **options)

    monkeypatch.setattr(training.loop, "evaluate", note_and_evaluate)
    trainer.run()
    assert alive == [[True, True], [False, False]]


def test_time_that_runs_out_while_a_checkpoint_is_saved_leaves_one_more_step(shared_clip, tmp_path, monkeypatch):
    config = tiny_config(
        shared_clip, tmp_path, representation="grid", iters_num=10**6, evaluate_every=1, time_budget_s=3600.0
    )
    trainer = start_run(config)
    save = trainer.save

    def save_slowly():
        save()
        trainer.stopwatch.advance_to(3600.0)

    monkeypatch.setattr(trainer, "save", save_slowly)
    trainer.run()
    assert trainer.iteration == 2
    assert (trainer.evaluation_folder / "metrics.json").is_file()


def test_a_full_disk_leaves_the_last_good_checkpoint(shared_clip, tmp_path, monkeypatch):
    trainer = start_run(tiny_config(shared_clip, tmp_path))
    before = trainer.checkpoint_path.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    trainer.step()
    monkeypatch.setattr(media.checkpoints.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert trainer.checkpoint_path.read_bytes() == before
    assert not list(trainer.folder.glob(".*.part*"))


@pytest.fixture
def small_files():
    """No file may grow beyond 2 MB, as on a disk that is almost full."""
    resource = pytest.importorskip("resource", reason="the largest size of files can't be set on this system")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_error_in_the_middle_of_a_checkpoint_is_the_one_of_the_disk(tmp_path, small_files):
    """By itself torch.save says "unexpected pos" then, which tells nobody what to do."""
    path, tensors = tmp_path / "checkpoint", {"weights": torch.zeros(300_000)}
    write_checkpoint(path, tensors)
    before = path.read_bytes()
    with pytest.raises(OSError, match="File too large"):
        write_checkpoint(path, tensors | {"more": torch.zeros(300_000)})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]


def test_a_rendered_frame_for_which_there_is_no_room_is_an_error_of_the_disk(tmp_path, small_files):
    """An OSError without a number would not be known as such, and end in a traceback."""
    uv, alpha = np.zeros((2, 500, 600, 2), np.float32), np.zeros((1, 500, 600), np.float32)
    with pytest.raises(OSError, match="File too large") as caught:
        FrameStore(tmp_path).add(Frame(0, uv, alpha, np.zeros((0, 0, 3), np.float32)))
    assert caught.value.errno == errno.EFBIG


@pytest.mark.slow
def test_an_unwritable_results_folder_is_one_line_and_exit_code_2(shared_clip, tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be")
    path = write_config(tmp_path / "c.json", tiny_config(shared_clip, tmp_path / "results"))
    done = run_script("train.py", path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert last_line(done.stderr).startswith("error: cannot read or write")


def test_resuming_needs_a_run_folder(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        resume_run(tmp_path / "none")


def test_a_checkpoint_without_optimizer_state_is_refused_for_training(shared_clip, tmp_path):
    trainer = start_run(tiny_config(shared_clip, tmp_path))
    torch.save(trainer.model.checkpoint(), trainer.checkpoint_path)
    with pytest.raises(UserError, match="no usable optimizer state"):
        trainer.restore(trainer.checkpoint_path)


@pytest.mark.slow
def test_load_checkpoint_starts_from_its_weights(finished_run, shared_clip, tmp_path):
    config = tiny_config(
        shared_clip, tmp_path, load_checkpoint=True, checkpoint_path=str(finished_run / "checkpoint"), iters_num=6
    )
    trainer = start_run(config)
    assert trainer.iteration == 4
    trainer.run()
    assert (trainer.folder / "000006").is_dir()


def test_a_half_written_log_line_and_later_ones_are_dropped_on_resuming(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"itera')
    log = Log(path)
    log.restore(2)
    log.add({"iteration": 3, "total": 1.0})
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_loss_that_is_not_a_number_stops_the_run(shared_clip, tmp_path):
    trainer = start_run(tiny_config(shared_clip, tmp_path))
    for value in ("nan", "inf"):
        with pytest.raises(UserError, match="the loss or the networks became NaN at iteration 0"):
            trainer.log_terms({"color": torch.tensor(float(value))}, NoEvents(), NoBar())


def test_networks_that_are_not_numbers_never_replace_a_good_checkpoint(shared_clip, tmp_path):
    trainer = start_run(tiny_config(shared_clip, tmp_path))
    before = trainer.checkpoint_path.read_bytes()
    with torch.no_grad():
        trainer.model.atlas.hidden[1].bias[0] = float("nan")
    with pytest.raises(UserError, match="the last good checkpoint is kept"):
        trainer.save()
    assert trainer.checkpoint_path.read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_evaluation_is_done_on_resuming(shared_clip, tmp_path, monkeypatch):
    import training.loop

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    trainer = start_run(tiny_config(shared_clip, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "evaluate", interrupt)
        with pytest.raises(Stopped, match=r"holds iteration 4\. Continue with"):
            trainer.run()
    resume_run(trainer.folder).run()
    assert (trainer.folder / "000004" / "metrics.json").exists()
    assert (trainer.folder / "preview.png").exists()


def test_an_interruption_between_two_steps_saves_the_finished_steps(shared_clip, tmp_path):
    trainer = start_run(tiny_config(shared_clip, tmp_path, iters_num=100))

    def interrupt(*_):
        if trainer.iteration == 3:
            raise KeyboardInterrupt

    trainer.log_terms = interrupt
    with pytest.raises(Stopped, match="holds iteration 3"):
        trainer.run()
    assert read_checkpoint(trainer.checkpoint_path)["iteration"] == 3


def test_load_checkpoint_of_a_finished_run_is_an_error(finished_run, shared_clip, tmp_path):
    config = tiny_config(
        shared_clip, tmp_path / "new", load_checkpoint=True, checkpoint_path=str(finished_run / "checkpoint")
    )
    with pytest.raises(UserError, match="holds iteration 4, iters_num is 4; raise iters_num"):
        start_run(config)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_pretraining_brings_the_mappings_near_the_scaled_coordinates(shared_clip, tmp_path):
    config = tiny_config(shared_clip, tmp_path, pretrain_iter_number=250)
    trainer = Trainer(config, tmp_path)
    points = torch.rand(100, 3, device=trainer.device) * 2 - 1

    def distance():
        with torch.no_grad():
            return (trainer.model.uv(points, 1) - 0.8 * points[:, :2]).norm(dim=1).mean().item()

    before = distance()
    trainer.initialize()
    assert distance() < 0.7 * before


class Clock:
    """A clock that only moves when a test sets it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_stopwatch_counts_earlier_seconds_but_no_pauses():
    clock = Clock()
    stopwatch = Stopwatch(clock)
    clock.now = 3.0
    with stopwatch.pause():
        clock.now = 103.0
    clock.now = 105.0
    assert stopwatch.seconds == 5.0
    stopwatch.restore(20.0)
    assert stopwatch.seconds == 25.0


@pytest.mark.slow
@pytest.mark.parametrize(("seconds_to_finish", "steps"), [(0.0, 3), (1.0, 2), (100.0, 2)])
def test_a_time_budget_ends_the_run_with_an_evaluation_that_does_not_use_it_up(
    shared_clip, tmp_path, monkeypatch, seconds_to_finish, steps
):
    """Each step takes one second and each evaluation an hour, so a budget of three seconds allows three steps.

    What finishing the model takes is left for it, but at least half of the budget is for steps.
    """
    import training.loop

    trainer = start_run(tiny_config(shared_clip, tmp_path, iters_num=10**6, evaluate_every=2, time_budget_s=3.0))
    clock = Clock()
    trainer.stopwatch = Stopwatch(clock)
    trainer.learner.seconds_to_finish = seconds_to_finish
    step, evaluate = trainer.learner.step, training.loop.evaluate

    def step_in_a_second(*arguments):
        clock.now += 1
        return step(*arguments)

    def evaluate_in_an_hour(*arguments, **named_arguments):
        clock.now += 3600
        return evaluate(*arguments, **named_arguments)

    monkeypatch.setattr(trainer.learner, "step", step_in_a_second)
    monkeypatch.setattr(training.loop, "evaluate", evaluate_in_an_hour)
    trainer.run()
    assert trainer.iteration == steps
    assert trainer.stopwatch.seconds == 3.0, "what was left for finishing counts as used"
    assert clock.now == (steps - 1) * 3600 + steps
    assert (trainer.folder / f"00000{steps}" / "metrics.json").exists()
    assert read_checkpoint(trainer.checkpoint_path)["seconds"] == 3.0
    assert resume_run(trainer.folder).is_finished
    assert not resume_run(trainer.folder, time_budget_s=1e6).is_finished


def test_a_run_that_is_corrected_keeps_half_of_its_new_time_for_steps(shared_clip, tmp_path):
    trainer = Trainer(tiny_config(shared_clip, tmp_path, time_budget_s=120.0), tmp_path)
    trainer.begin_s = 100.0  # when it was resumed
    for seconds_to_finish, end_of_steps in ((0.0, 120), (5.0, 115), (15.0, 110), (500.0, 110)):
        trainer.learner.seconds_to_finish = seconds_to_finish
        assert trainer.seconds_for_steps == end_of_steps


def test_learning_rates_are_constant_as_published_and_decay_if_the_config_says_so(shared_clip, tmp_path):
    trainer = Trainer(tiny_config(shared_clip, tmp_path, iters_num=10, learning_rate_appearance=1e-3), tmp_path)

    def learning_rates(iteration):
        trainer.iteration = iteration
        trainer.learner.set_learning_rates(trainer.progress)
        return [group["lr"] for group in trainer.learner.optimizer.param_groups]

    assert learning_rates(0) == learning_rates(9) == [1e-4, 1e-4, 1e-3, 1e-3]
    trainer.learner.config = replace(trainer.config, learning_rate_end=0.01)
    assert learning_rates(4) == [1e-4, 1e-4, 1e-3, 1e-3]
    assert learning_rates(7) == pytest.approx([1e-5, 1e-5, 1e-4, 1e-4])
    assert learning_rates(10) == pytest.approx([1e-6, 1e-6, 1e-5, 1e-5])


@pytest.mark.parametrize(("largest", "is_found"), [(500, True), (4, True), (3, False)])
def test_an_earlier_run_is_found_if_another_largest_number_of_frames_leaves_the_same_frames(
    clip_folder, tmp_path, largest, is_found
):
    config = tiny_config(clip_folder, tmp_path / "results", maximum_number_of_frames=2000)
    trainer = start_run(replace(config, maximum_number_of_frames=largest))
    assert find_newest_run(config) == (trainer.folder if is_found else None)
