"""Pins and dials mend the mapping of a finished run, and leave the rest of it as it is."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import finish_grid_run, last_line, run_script

from alignment.pins import Pin, read_pins
from command_line import UserError
from config import load_config
from grids.pins import fit_to_pins
from grids.stiffness import change_stiffness
from rendering.frames import render_frame
from rendering.inverse import locate_uv
from training.runs import Corrections, resume_run

SIZE = (6, 64, 96)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A finished run of grids."""
    return finish_grid_run(tmp_path_factory, 96, 64, 20)


def find_in_frame(model, clip, layer, start, place, t):
    """Return where the mapping sees a place of frame `start` in frame t."""
    uv = render_frame(model, clip, start, True, with_colors=False).uv[layer]
    target = render_frame(model, clip, t, True, with_colors=False).uv[layer]
    x, y = place
    positions, _ = locate_uv(uv[y : y + 1, x], target)
    return positions[0]


def mapped(model, clip, t):
    return render_frame(model, clip, t, True, with_colors=False).uv


def test_the_places_of_a_pin_become_one_place_and_other_layers_stay(trainer):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    place = (20, 12)
    before = [mapped(model, clip, t) for t in range(6)]
    target = find_in_frame(model, clip, 1, 0, place, 4) + (3, -2)
    fit_to_pins(model, [Pin(1, np.array([0, 4]), np.array([place, target], float))])
    assert np.linalg.norm(find_in_frame(model, clip, 1, 0, place, 4) - target) < 0.2
    for t in range(6):
        np.testing.assert_array_equal(mapped(model, clip, t)[0], before[t][0])


def test_a_pin_that_agrees_with_the_mapping_changes_nothing(trainer):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    before = mapped(model, clip, 2)
    target = find_in_frame(model, clip, 1, 0, (20, 12), 4)
    fit_to_pins(model, [Pin(1, np.array([0, 4]), np.array([(20, 12), target], float))])
    assert np.abs(mapped(model, clip, 2) - before).max() * model.px_per_uv(1, clip.size) < 0.1


def test_a_pin_holds_the_frame_of_its_first_place_and_bends_gently(trainer):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    before = [mapped(model, clip, t) for t in range(6)]
    target = find_in_frame(model, clip, 1, 0, (40, 30), 5) + (6, 0)
    places = np.array([(40, 30), target], float)
    fit_to_pins(model, [Pin(1, np.array([0, 5]), places, reach_px=16.0)])
    px_per_uv = model.px_per_uv(1, clip.size)
    np.testing.assert_allclose(mapped(model, clip, 0), before[0], atol=1e-6)
    change_px = (mapped(model, clip, 5) - before[5])[1] * px_per_uv
    assert np.linalg.norm(change_px[round(target[1]), round(target[0])]) > 5
    assert np.abs(np.diff(change_px, axis=1)).max() < 0.25  # No place is squeezed or stretched by more than a quarter.


def test_pins_with_one_place_that_contradict_each_other_meet_in_the_middle(trainer):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    place = find_in_frame(model, clip, 1, 0, (40, 30), 5)
    pins = [Pin(1, np.array([0, 5]), np.array([(x, 30), place], float)) for x in (37, 43)]
    fit_to_pins(model, pins)
    assert np.linalg.norm(find_in_frame(model, clip, 1, 0, (40, 30), 5) - place) < 0.5


def test_the_place_of_a_pin_that_was_set_first_stays_also_if_its_frame_is_a_later_one(trainer, tmp_path):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    before = mapped(model, clip, 5)
    slipped = find_in_frame(model, clip, 1, 5, (40, 30), 1) + (4, 0)
    (tmp_path / "pins.json").write_text(json.dumps({"pins": [{"layer": 1, "places": [[5, 40, 30], [1, *slipped]]}]}))
    fit_to_pins(model, read_pins(tmp_path / "pins.json", clip.size, 2))
    np.testing.assert_allclose(mapped(model, clip, 5), before, atol=1e-6)
    assert np.linalg.norm(find_in_frame(model, clip, 1, 5, (40, 30), 1) - slipped) < 0.2


def test_a_pin_that_is_dragged_far_does_not_fold_the_mapping(trainer):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    place = find_in_frame(model, clip, 1, 0, (30, 30), 5)
    fit_to_pins(model, [Pin(1, np.array([0, 5]), np.array([(30, 30), place + (30, 0)], float), reach_px=4.0)])
    assert (np.diff(mapped(model, clip, 5)[1, ..., 0], axis=1) > 0).all()


def test_a_change_by_a_pin_is_steady_in_time(trainer):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    target = find_in_frame(model, clip, 1, 0, (20, 12), 5) + (5, 0)
    shifts = [find_in_frame(model, clip, 1, 0, (20, 12), t) for t in range(6)]
    fit_to_pins(model, [Pin(1, np.array([0, 5]), np.array([(20, 12), target], float))])
    moved = [find_in_frame(model, clip, 1, 0, (20, 12), t)[0] - shifts[t][0] for t in range(6)]
    steps = np.diff(moved)
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.min()


@pytest.mark.parametrize(("factor", "bends_less"), [(4.0, True), (0.25, False)])
def test_a_dial_makes_a_layer_stiffer_or_softer(trainer, factor, bends_less):
    model, clip = copy.deepcopy(trainer.model).cpu(), trainer.clip
    torch.manual_seed(0)
    with torch.no_grad():
        model.mappings[1][-1].values += torch.randn_like(model.mappings[1][-1].values)

    def bending():
        return np.mean([np.square(np.diff(mapped(model, clip, t)[1], 2, axis=1)).mean() for t in range(6)])

    before = bending()
    change_stiffness(model, trainer.learner.video.to(torch.device("cpu")), 1, factor)
    if bends_less:
        assert bending() < 0.6 * before
    else:
        assert not np.isclose(bending(), before)


def test_resuming_with_pins_writes_a_checkpoint_in_which_they_hold(trainer, tmp_path):
    clip = trainer.clip
    target = find_in_frame(trainer.model, clip, 0, 0, (30, 34), 4) + (2, 1)
    pins = tmp_path / "pins.json"
    pins.write_text(json.dumps({"pins": [{"layer": 0, "places": [[0, 30, 34], [4, *target]]}]}))
    mended = resume_run(trainer.folder, 0.5, corrections=Corrections(pins=pins, rigidity={1: 2.0}))
    mended.run(with_evaluation=False)
    assert np.linalg.norm(find_in_frame(mended.model, clip, 0, 0, (30, 34), 4) - target) < 0.5
    assert load_config(trainer.folder / "config.json").layer_rigidity == (1.0, 2.0)
    assert not [path for path in trainer.folder.iterdir() if path.is_dir() and path.name.isdecimal()], "no evaluation"


def test_pins_hold_in_a_run_that_is_resumed_without_them(trainer, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trainer.folder, folder)
    place = (34, 30)
    target = find_in_frame(trainer.model, trainer.clip, 0, 0, place, 3) + (-2, 2)
    pins = tmp_path / "pins.json"
    pins.write_text(json.dumps({"pins": [{"layer": 0, "places": [[0, *place], [3, *target]]}]}))
    resume_run(folder, 0.5, corrections=Corrections(pins=pins))  # It is stopped before it has trained at all.
    resumed = resume_run(folder, trainer.stopwatch.seconds + 30)
    expected = [pin.values() for pin in read_pins(pins, SIZE, 2)]  # and no other pin that the run had before
    assert [pin.values() for pin in resumed.learner.pins] == expected
    with torch.no_grad():
        nodes = resumed.model.mappings[0][-1].values
        nodes += torch.linspace(0, 3, len(nodes))[:, None, None, None]  # as training might
    resumed.learner.finish()
    assert np.linalg.norm(find_in_frame(resumed.model, trainer.clip, 0, 0, place, 3) - target) < 0.5
    kept = resume_run(folder, 0.5, corrections=Corrections(rigidity={1: 2.0}))
    assert [pin.values() for pin in kept.learner.pins] == expected
    pins.write_text('{"pins": []}')
    assert resume_run(folder, 0.5, corrections=Corrections(pins=pins)).learner.pins == []
    assert resume_run(folder, trainer.stopwatch.seconds + 30).learner.pins == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no list of pins"),
        ('{"pins": [{"places": []}]}', "no list of pins"),
        ('{"pins": [{"layer": 2, "places": [[0, 1, 1], [1, 2, 2]]}]}', "pin 1 is on layer 2, expected 0 to 1"),
        (
            '{"pins": [{"layer": 0, "places": [[0, 1, 1], [9, 2, 2]]}]}',
            "pin 1 names frame 9, the clip has frames 0 to 5",
        ),
        ('{"pins": [{"layer": 0, "places": [[0, 1, 1], [1, 999, 2]]}]}', "outside of 96 x 64"),
        ('{"pins": [{"layer": 0, "places": [[1, 1, 1], [1, 9, 2]]}]}', "two places in one frame"),
        ('{"pins": [{"layer": 0, "places": [[1, 1, 1]]}]}', "no pin has places in two frames"),
        ('{"pins": [{"layer": 0, "places": [[0, 1, 1], [1, 9, 2]], "reach_px": 0}]}', "reach of 0 pixels"),
    ],
)
def test_a_file_of_pins_that_cannot_be_used_is_explained(tmp_path, text, message):
    path = tmp_path / "pins.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_pins(path, SIZE, 2)


def test_pins_need_a_finished_run_and_a_file(trainer, tmp_path):
    done = run_script("train.py", "config/fast.json", "--pins=none.json")
    assert (done.returncode, last_line(done.stderr)) == (
        2,
        "error: --pins corrects a finished run; add --resume RUN_FOLDER",
    )
    done = run_script("train.py", f"--resume={trainer.folder}", f"--pins={tmp_path / 'none.json'}")
    assert done.returncode == 2
    assert "no such file; --pins takes a JSON such as" in last_line(done.stderr)
    done = run_script("train.py", f"--resume={trainer.folder}", "--rigidity=3:2")
    assert done.returncode == 2
    assert "--rigidity 3: the run has 2 layers" in last_line(done.stderr)


def test_networks_have_no_pins(finished_run, tmp_path):
    pins = tmp_path / "pins.json"
    pins.write_text('{"pins": [{"layer": 0, "places": [[0, 1, 1], [1, 2, 2]]}]}')
    with pytest.raises(UserError, match="representation 'grid' alone"):
        resume_run(finished_run, corrections=Corrections(pins=pins))
