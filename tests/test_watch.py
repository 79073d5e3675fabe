"""Watching painted files: every save gives a new video, whatever the state of the file."""

import numpy as np
import pytest

import media
import only_edit
from command_line import UserError
from editing.requests import BACKGROUND, AtlasEdit, EditRequest
from editing.watch import watch_edits
from media.decoding import read_video
from rendering.trained_run import open_run

RED, GREEN = (255, 0, 0, 255), (0, 255, 0, 255)


def write_paint(path, color):
    """Paint the whole square atlas."""
    media.write_png(path, np.full((40, 40, 4), color, np.uint8))


def mean_color(video):
    """Return the mean colour of a video, (3,)."""
    return np.stack(list(read_video(video))).mean((0, 1, 2))


@pytest.fixture
def watched(finished_run, tmp_path):
    """Watch a picture over the background, and do something at each look until all is done; returns what was seen."""

    def watch(*actions):
        run, paint, out = open_run(finished_run), tmp_path / "paint.png", media.make_folder(tmp_path / "out")
        write_paint(paint, RED)
        waits = iter(range(100))
        pending = list(actions)

        def act(seconds):
            look = next(waits)
            if look % 3 == 2:  # A change shows after two looks.
                if not pending:
                    raise KeyboardInterrupt
                pending.pop(0)(paint, out)

        watch_edits(run, EditRequest(atlas_edits=(AtlasEdit(BACKGROUND, paint),)), out, wait=act)
        return next(out.glob("edited_*.mp4"))

    return watch


def test_every_save_gives_a_new_video_at_half_size(watched, capsys):
    seen = []

    def save_green(paint, out):
        seen.append(mean_color(next(out.glob("edited_*.mp4"))))
        write_paint(paint, GREEN)

    video = watched(save_green)
    red, green = seen[0], mean_color(video)
    assert red[0] > red[1] + 30
    assert green[1] > green[0] + 30
    assert next(iter(read_video(video))).shape == (16, 24, 3)  # of 32 x 48
    printed = capsys.readouterr().out
    assert printed.count("save again to see more") == 2
    assert "without --watch" in printed


def test_a_file_that_is_still_being_saved_is_waited_for(watched, capsys):
    def save_half(paint, out):
        paint.write_bytes(paint.read_bytes()[:50])

    def save_green(paint, out):
        write_paint(paint, GREEN)

    green = mean_color(watched(save_half, save_green))
    assert green[1] > green[0] + 30
    assert "waiting for the next save" in capsys.readouterr().err


def test_a_file_that_is_replaced_may_be_gone_for_a_moment(watched):
    def remove(paint, out):
        paint.unlink()

    def save_green(paint, out):
        write_paint(paint, GREEN)

    green = mean_color(watched(remove, save_green))
    assert green[1] > green[0] + 30


def test_nothing_is_written_while_nothing_is_saved(watched, capsys):
    watched(lambda paint, out: None, lambda paint, out: None)
    assert capsys.readouterr().out.count("save again to see more") == 1


def test_flags_that_have_no_use_are_named(finished_run, tmp_path):
    write_paint(tmp_path / "paint.png", RED)
    flags = [f"--output_folder={tmp_path / 'out'}", f"--edit_background_path={tmp_path / 'paint.png'}", "--watch"]
    with pytest.raises(UserError, match="--watch writes an mp4 at half size; leave --format png out"):
        only_edit.main([f"--trained_model_folder={finished_run}", *flags, "--format", "png"])


def test_the_script_watches_with_the_flag_alone(finished_run, tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr("editing.watch.watch_edits", lambda run, request, folder: watched.append(folder))
    write_paint(tmp_path / "paint.png", RED)
    flags = [f"--output_folder={tmp_path / 'out'}", f"--edit_background_path={tmp_path / 'paint.png'}", "--watch"]
    only_edit.main([f"--trained_model_folder={finished_run}", *flags])
    assert watched == [tmp_path / "out"]
