"""unwrap_video.py: one command from a video to layers."""

import errno
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, last_line, run_script

import media
import unwrap_video
from command_line import UserError
from command_line import run_script as run_main
from config import config_text, load_config
from evaluation.mask_metrics import iou
from masks.provenance import read_mask_sources
from media.clip import open_clip
from media.decoding import read_video
from preprocessing.estimate import Task, describe_duration, describe_time, estimate_disk_bytes, estimate_seconds
from preprocessing.extract import Span, check_cuts, extract_frames
from preprocessing.mask_request import MaskRequest
from preprocessing.masks import write_masks
from preprocessing.scene_cuts import SceneCutDetector
from scenes.catalogue import SCENES
from training.earlier_runs import find_newest_run
from unwrap_video import FAST_CONFIG

pytestmark = pytest.mark.slow

SIZE = (128, 72)
COUNT = 10
QUICK = ["--method", "motion", "--flow_method", "dis", "--time_budget", "3"]


@pytest.mark.parametrize(
    ("flags", "frames", "seconds"),
    [
        ([], 20, 60),
        ([], 70, 70),
        ([], 400, 400),
        (["--max_long_edge=1536"], 70, 280),
        (["--max_long_edge=384"], 70, 70),
        (["--time_budget=30"], 400, 30),
        (["--time_per_100_frames=60"], 400, 240),
        (["--time_per_100_frames=60"], 20, 12),
    ],
)
def test_a_run_gets_a_second_for_each_frame_and_at_least_60_or_what_the_flags_say(flags, frames, seconds):
    options = unwrap_video.make_unwrap_parser().parse_args(["clip.mp4", *flags])
    assert unwrap_video.choose_time_budget(options, frames, (3072, 1728)) == seconds


def write_movie(path, scene, frames=range(COUNT), fps=12.0) -> None:
    """Write the frames of a drawn scene as a video."""
    with media.VideoWriter(path, fps, crf=6) as video:
        for t in frames:
            video.write(scene.frame(t).rgb)


@pytest.fixture(scope="module")
def unwrapped(tmp_path_factory):
    """An unwrapped video; returns the working folder and the output of the command."""
    folder = tmp_path_factory.mktemp("my videos é")
    write_movie(folder / "a pan.mp4", SCENES["pan"](*SIZE, COUNT))
    done = run_script(unwrap_video.__file__, "a pan.mp4", *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_video_becomes_layers_in_one_command(unwrapped):
    folder, output = unwrapped
    (run,) = (folder / "results").iterdir()
    (evaluation,) = (path.parent for path in run.glob("*/metrics.json"))
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["psnr"] > 22
    for stage in ("[1 of 4] frames", "[2 of 4] masks", "[3 of 4] flow", "[4 of 4] layers", "done in"):
        assert stage in output
    assert re.search(r"about \d+ s on two CPU cores", output)
    assert media.image_size(folder / "data" / "a pan" / "00000.png") == SIZE
    assert json.loads((folder / "data" / "a pan.json").read_text())["fps"] == 12


def test_four_videos_are_written_unless_all_are_asked_for(unwrapped, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(unwrapped[0], folder)
    (run,) = (folder / "results").iterdir()
    (evaluation,) = (path.parent for path in run.glob("*/metrics.json"))
    kinds = {path.stem.removesuffix("_a pan") for path in evaluation.glob("*.mp4")}
    assert kinds == {"reconstruction", "alpha", "residuals", "edit"}
    checkpoint = (run / "checkpoint").read_bytes()
    monkeypatch.chdir(folder)
    unwrap_video.main([str(unwrapped[0] / "a pan.mp4"), *QUICK, "--full_evaluation"])
    assert {"global_info_a pan.mp4", "checkerboard_1_a pan.mp4"} <= {path.name for path in evaluation.glob("*.mp4")}
    assert (run / "checkpoint").read_bytes() == checkpoint  # It was not trained again.


def test_masks_that_were_found_are_known_as_such_until_somebody_changes_them(unwrapped, tmp_path):
    shutil.copytree(unwrapped[0] / "data", tmp_path / "data")
    frames = tmp_path / "data" / "a pan"
    clip = open_clip(frames, load_config(FAST_CONFIG))
    assert read_mask_sources(clip) == ["found"]
    media.write_png(frames.with_name("a pan_maskrcnn") / "00003.png", np.zeros(SIZE[::-1], np.uint8))
    assert read_mask_sources(clip) == ["unknown"]


def test_the_object_is_found_without_weights_or_help(unwrapped):
    folder, _ = unwrapped
    scene = SCENES["pan"](*SIZE, COUNT)
    masks = [media.read_mask(path) > 127 for path in media.list_images(folder / "data" / "a pan_maskrcnn")]
    assert np.mean([iou(mask, scene.frame(t).alpha[0] >= 0.5) for t, mask in enumerate(masks)]) > 0.7


def test_what_is_done_is_not_done_again(unwrapped):
    folder, _ = unwrapped
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = run_script(unwrap_video.__file__, "a pan.mp4", *QUICK, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    for done in ("10 frames exist already", "all 10 masks exist", "all 18 flow files exist", "trained and"):
        assert done in again.stdout


def test_a_scene_cut_is_named_and_nothing_is_left_behind(tmp_path):
    first, second = SCENES["pan"](*SIZE, 6), SCENES["cross"](*SIZE, 6)
    with media.VideoWriter(tmp_path / "two.mp4", 10) as video:
        for t in range(12):
            video.write(first.frame(t).rgb if t < 6 else second.frame(t - 6).rgb[::-1, ::-1])
    done = run_script(unwrap_video.__file__, "two.mp4", *QUICK, cwd=tmp_path)
    assert done.returncode == 2
    assert "a scene cut between frames 5 and 6; take one scene at a time: --end 0.550 or --start 0.550" in last_line(
        done.stderr
    )
    assert list((tmp_path / "data").iterdir()) == []


def test_further_cuts_are_named(tmp_path):
    scenes = [SCENES[name](*SIZE, 6) for name in ("pan", "cross", "pan")]
    with media.VideoWriter(tmp_path / "three.mp4", 10) as video:
        for n, scene in enumerate(scenes):
            for t in range(5):
                video.write(scene.frame(t).rgb[:: 1 - 2 * (n % 2)])
    with pytest.raises(UserError, match=r"between frames 4 and 5 \(and 1 more, at 0.950 s\)"):
        extract_frames(tmp_path / "three.mp4", tmp_path / "data" / "three", Span(), False, 500)
    with pytest.raises(UserError, match=r"between frames 4 and 5 \(and 1 more, before frames 10\)"):
        check_cuts(SceneCutDetector([5, 10], count=15), tmp_path / "pictures", False, None)


def test_the_advice_on_a_cut_gives_the_two_scenes(tmp_path):
    """The rate is one whose frame times have infinitely many digits."""
    first, second = SCENES["pan"](*SIZE, 6), SCENES["cross"](*SIZE, 6)
    pictures = [first.frame(t).rgb for t in range(5)] + [second.frame(t).rgb[::-1, ::-1] for t in range(5)]
    with media.VideoWriter(tmp_path / "two.mp4", 30000 / 1001) as video:
        for picture in pictures:
            video.write(picture)
    with pytest.raises(UserError, match="a scene cut between frames 4 and 5") as caught:
        extract_frames(tmp_path / "two.mp4", tmp_path / "data" / "two", Span(), False, 500)
    at_s = float(re.search(r"--end ([\d.]+)", str(caught.value))[1])
    assert extract_frames(tmp_path / "two.mp4", tmp_path / "data" / "one", Span(end_s=at_s), False, 500).frames == 5
    assert extract_frames(tmp_path / "two.mp4", tmp_path / "data" / "other", Span(start_s=at_s), False, 500).frames == 5


def test_a_video_of_unknown_length_ends_at_the_limit(tmp_path, unwrapped):
    with pytest.raises(UserError, match="has more than 5 frames here, --max_frames is 5"):
        extract_frames(unwrapped[0] / "a pan.mp4", tmp_path / "pan", Span(), False, 5)
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_the_user_wrote_is_not_overwritten(tmp_path, unwrapped):
    (tmp_path / "pan.json").write_text('{"fps": 25}')
    with pytest.raises(UserError, match=r"pan\.json exists and is not a note about extracted frames"):
        extract_frames(unwrapped[0] / "a pan.mp4", tmp_path / "pan", Span(), False, 50)


def test_a_request_that_existing_masks_do_not_fulfil_is_refused(unwrapped, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(unwrapped[0], folder)
    source = str(folder / "data" / "a pan")
    with pytest.raises(UserError, match="holds masks found with method motion, but the request is for method import"):
        write_masks(Path(source), MaskRequest("import", source=folder))
    (folder / "data" / "a pan_maskrcnn.json").unlink()  # Nobody knows where the masks come from then.
    with pytest.raises(UserError, match="holds masks already; move it away to take those of --masks"):
        write_masks(Path(source), MaskRequest("import", source=folder))


def test_masks_made_anew_are_trained_on_anew(unwrapped, tmp_path):
    shutil.copytree(unwrapped[0], tmp_path / "copy")
    (run,) = (tmp_path / "copy" / "results").iterdir()
    frames = tmp_path / "copy" / "data" / "a pan"
    config = replace(load_config(run / "config.json"), data_folder=str(frames), results_folder_name=str(run.parent))
    (run / "config.json").write_text(config_text(config))
    assert find_newest_run(config) == run
    mask = frames.with_name("a pan_maskrcnn") / "00000.png"
    later = run.stat().st_mtime + 60
    os.utime(mask, (later, later))
    assert find_newest_run(config) is None


def test_a_run_that_was_damaged_is_passed_over(unwrapped, tmp_path, capsys):
    shutil.copytree(unwrapped[0] / "results", tmp_path / "results")
    (run,) = (tmp_path / "results").iterdir()
    frames = unwrapped[0] / "data" / "a pan"
    config = replace(load_config(run / "config.json"), data_folder=str(frames), results_folder_name=str(run.parent))
    (run / "config.json").write_text(config_text(config))
    assert find_newest_run(config) == run
    whole = (run / "checkpoint").read_bytes()
    (run / "checkpoint").write_bytes(whole[:1000])
    assert find_newest_run(config) is None
    assert "skipped an earlier run" in capsys.readouterr().err


def test_strokes_correct_the_run_that_is_there(unwrapped, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(unwrapped[0], folder)
    (run,) = (folder / "results").iterdir()
    picture = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    picture[2:8, 2:20] = (255, 0, 0, 255)  # a part of the background, where no mask shows the object
    media.write_png(media.make_folder(folder / "strokes") / "00003.png", picture)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("training.runs.CORRECTION_BUDGET_S", 1.0)
    unwrap_video.main([str(unwrapped[0] / "a pan.mp4"), *QUICK, "--strokes", "strokes"])
    assert "trained and evaluated already" in capsys.readouterr().out
    assert list((folder / "results").iterdir()) == [run]
    (video,) = max(run.glob("[0-9]*/metrics.json")).parent.glob("alpha_a*.mp4")
    frames = list(read_video(video))
    assert frames[3][3:7, 4:18].mean() > 127
    before = (run / "checkpoint").read_bytes()
    unwrap_video.main([str(unwrapped[0] / "a pan.mp4"), *QUICK, "--strokes", "strokes"])
    assert (run / "checkpoint").read_bytes() == before  # The same strokes are not applied twice.


def test_strokes_that_cannot_be_used_are_refused_before_anything_long_begins(unwrapped, tmp_path):
    (tmp_path / "strokes").mkdir()
    with pytest.raises(UserError, match="nothing is painted there"):
        unwrap_video.main(make_arguments(unwrapped[0] / "a pan.mp4", tmp_path, "--strokes", str(tmp_path / "strokes")))
    assert not (tmp_path / "data" / "a pan_maskrcnn").exists()


def test_a_clips_own_masks_given_as_masks_are_used_as_they_are(unwrapped, capsys):
    masks = unwrapped[0] / "data" / "a pan_maskrcnn"
    write_masks(masks.with_name("a pan"), MaskRequest("import", source=masks))
    assert "used as they are" in capsys.readouterr().out


def make_arguments(source, tmp_path, *flags: str) -> list[str]:
    """Return the arguments of a quick run that writes into a test's own folders."""
    folders = ["--data_folder", str(tmp_path / "data"), "--results_folder", str(tmp_path / "results")]
    return [str(source), *QUICK, *folders, *flags]


def test_another_video_of_the_same_name_does_not_take_its_place(tmp_path, unwrapped):
    folder, _ = unwrapped
    shutil.copytree(folder / "data", tmp_path / "data")
    write_movie(tmp_path / "a pan.mp4", SCENES["bend"](*SIZE, COUNT))
    with pytest.raises(
        UserError, match="holds frames of another video or of another part; give the clip another --name"
    ):
        unwrap_video.main(make_arguments(tmp_path / "a pan.mp4", tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start", "9"], "--start 9: .* is 0.83 s long"),
        (["--start", "0.5", "--end", "0.4"], "--end 0.4 lies before --start 0.5"),
        (["--end", "0.05"], "1 frame in this part; at least 2 are needed"),
        (["--every", "0"], "--every is 0, expected at least 1"),
        (["--max_frames", "5"], "has 10 frames here, --max_frames is 5"),
        (["--time_budget", "nan"], "--time_budget is nan"),
    ],
)
def test_parts_and_numbers_that_make_no_sense_are_refused(tmp_path, unwrapped, flags, message):
    with pytest.raises(UserError, match=message):
        unwrap_video.main(make_arguments(unwrapped[0] / "a pan.mp4", tmp_path, *flags))


@pytest.mark.parametrize(("name", "message"), [("none.mp4", "no such file"), ("0.png", "is a picture; give a video")])
def test_what_is_no_video_is_named(tmp_path, name, message):
    media.write_png(tmp_path / "0.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match=message):
        unwrap_video.main(make_arguments(tmp_path / name, tmp_path))


def test_masks_that_are_not_there_are_named_before_anything_begins(tmp_path, unwrapped):
    source = str(unwrapped[0] / "a pan.mp4")
    with pytest.raises(UserError, match="typo: no such file or folder"):
        unwrap_video.main([source, "--masks", str(tmp_path / "typo"), "--data_folder", str(tmp_path / "data")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class_name", "dragon"], "--class_name 'dragon' is unknown to Mask R-CNN; .*bird"),
        (["--point", "900,3,0"], "--point 900,3,0: outside the frames of"),
        (["--point", "6,3,10"], "--point 6,3,10: the clip has the frames 0 to 9"),
    ],
)
def test_an_object_that_cannot_be_looked_for_is_refused_before_frames_are_written(tmp_path, unwrapped, flags, message):
    with pytest.raises(UserError, match=message):
        unwrap_video.main(make_arguments(unwrapped[0] / "a pan.mp4", tmp_path, "--method", "auto", *flags))
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_video_have_names_of_their_own():
    assert Span().name_suffix() == ""
    assert Span(1.5, 3, 2).name_suffix() == "_from1.5s_to3s_every2"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "10 s"), (44, "40 s"), (77, "80 s"), (114, "110 s"), (116, "2 min"), (400, "7 min")]
)
def test_durations_are_named_roughly(seconds, text):
    assert describe_duration(seconds) == text


def test_the_estimate_grows_with_the_clip_and_counts_only_what_is_to_do():
    small = Task(50, (854, 480), (768, 432), True, "motion", "dis", 180)
    large = Task(100, (3840, 2160), (768, 432), True, "motion", "dis", 180)
    extracted = Task(50, (854, 480), (768, 432), False, None, "dis", 180)
    assert estimate_seconds(extracted) < estimate_seconds(small) < estimate_seconds(large)
    assert 180 < estimate_seconds(small) < 400
    assert estimate_seconds(small) < estimate_seconds(replace(small, evaluation="full evaluation"))
    assert estimate_disk_bytes(extracted) < estimate_disk_bytes(small) < estimate_disk_bytes(large)


def test_the_estimate_tells_both_times_where_a_download_decides_how_masks_are_found():
    task = Task(50, (854, 480), (768, 432), True, "detector", "dis", 60)
    assert describe_time(task) == "about 5 min on two CPU cores"
    undecided = describe_time(replace(task, may_find_by_motion=True))
    assert undecided == "about 5 min on two CPU cores, or 90 s if the weights of a detector cannot be downloaded"


@pytest.mark.parametrize("flag", ["--results_folder", "--data_folder"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path, unwrapped, flag):
    (tmp_path / "file").touch()
    arguments = make_arguments(unwrapped[0] / "a pan.mp4", tmp_path)
    with pytest.raises(UserError, match=r"file: is a file, and .*results has to be a folder"):
        unwrap_video.main([*arguments, flag, str(tmp_path / "file" / "results")])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_one_line_and_leaves_nothing(
    tmp_path, unwrapped, monkeypatch, capsys, number
):
    def refuse(path, image):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(media, "write_png", refuse)
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: unwrap_video.main(make_arguments(unwrapped[0] / "a pan.mp4", tmp_path)))
    assert ended.value.code == 2
    assert "check its permissions and the free space" in last_line(capsys.readouterr().err)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_begins(tmp_path, unwrapped, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"MB free, about .* MB are needed; make room"):
        unwrap_video.main(make_arguments(unwrapped[0] / "a pan.mp4", tmp_path))
    assert not (tmp_path / "data").exists()


def test_a_title_that_is_too_long_is_shortened_before_the_slow_part(tmp_path, capsys):
    """The name fits into the file system, those of the files that are named after it would not."""
    title = "動" * 78
    write_movie(tmp_path / f"{title}.mp4", SCENES["pan"](*SIZE, COUNT))
    options = unwrap_video.make_unwrap_parser().parse_args(
        [str(tmp_path / f"{title}.mp4"), "--data_folder", str(tmp_path / "data"), "--start", "0.1"]
    )
    frames = unwrap_video.extract_video_frames(options, {})
    assert frames.name.endswith("動_from0.1s")
    assert len(frames.name.encode()) <= 255 - media.files.DECORATION_BYTES
    assert "the name of the video is too long for the files that are named after it" in capsys.readouterr().out
    options.name = title
    with pytest.raises(UserError, match="is too long for the files that are named after it; give a shorter one"):
        unwrap_video.extract_video_frames(options, {})


def test_a_folder_or_frames_with_names_that_are_too_long_are_refused(tmp_path):
    frames = draw(tmp_path)
    for name, message in (("動" * 70, "the folder's name has 210 bytes"), ("short", "the names of its pictures")):
        folder = frames.rename(tmp_path / name)
        if name == "short":
            paths = media.list_images(folder)
            paths[0].rename(folder / f"{'f' * 130}.png")
        with pytest.raises(UserError, match=message):
            unwrap_video.main([str(folder)])
        frames = folder


def test_an_error_of_the_file_system_is_one_line(tmp_path):
    done = run_script("unwrap_video.py", tmp_path / ("a" * 300 + ".mp4"))
    assert done.returncode == 2
    assert last_line(done.stderr).endswith("File name too long; use shorter names")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_titles_with_percent_signs_quotes_and_other_letters_work(tmp_path):
    video = tmp_path / '50% "off" it\'s $HOME %d 動画.mp4'
    write_movie(video, SCENES["pan"](*SIZE, COUNT))
    flags = ["--time_budget", "1", "--method", "motion", "--data_folder", tmp_path / "data"]
    done = run_script("unwrap_video.py", video, *flags, "--results_folder", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    folder = Path(shlex.split(done.stdout[done.stdout.index("to edit:") :])[4].removeprefix("--trained_model_folder="))
    assert (folder / "checkpoint").is_file()
