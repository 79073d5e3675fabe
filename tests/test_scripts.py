"""The scripts from the command line: their help, a whole pass, and messages about wrong input."""

import re

import pytest
from conftest import ROOT, draw, last_line, run_script, tiny_config, write_config

SCRIPTS = ["train.py", "only_evaluate.py", "only_edit.py", "preprocess_mask_rcnn.py", "preprocess_optical_flow.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_an_example_and_imports_no_large_library(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "large = {'torch', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {large}' if large else 0)"
    )
    done = run_script("-c", code)
    assert done.returncode == 0, done.stderr
    assert f"python {script}" in done.stdout
    assert len(done.stdout.splitlines()) > 8


def test_a_wrong_flag_is_one_line_with_exit_code_2():
    done = run_script("preprocess_optical_flow.py", "--vid-path", "data/demo", "--method", "diss")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: argument --method: invalid choice: 'diss'")
    assert line.endswith("preprocess_optical_flow.py --help shows all flags")


@pytest.mark.parametrize(
    ("flags", "guess"),
    [
        (["--set", "a=1", "--time_buget", "30"], "; did you mean --time_budget? "),
        (["--sett=a=1", "--resum", "run"], "; did you mean --set and --resume? "),
        (["--zzz"], "; "),
    ],
)
def test_a_misspelt_flag_gets_a_guess(flags, guess):
    done = run_script("train.py", "config/fast.json", *flags)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"error: unrecognized arguments: [^;]+{re.escape(guess)}train.py --help shows all flags\n", done.stderr
    )


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("--time_budget", "abc", "'abc' is not a number"),
        ("--time_budget", "", "'' is not a number"),
        ("--objects", "1.5", "'1.5' is not a whole number"),
    ],
)
def test_text_where_a_number_is_expected_is_named_in_plain_words(flag, text, message):
    done = run_script("unwrap_video.py", "swan.mp4", flag, text)
    assert done.returncode == 2
    assert last_line(done.stderr).startswith(f"error: argument {flag}: {message}; unwrap_video.py --help")


@pytest.mark.slow
def test_train_then_evaluate_then_edit_runs_on_a_tiny_video(tmp_path):
    """All scripts run as subprocesses, in another folder, with relative paths."""
    draw(tmp_path / "data")
    write_config(tmp_path / "c.json", tiny_config(tmp_path, "results", data_folder="data/demo"))
    done = run_script(ROOT / "train.py", "c.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "results").iterdir()).relative_to(tmp_path)
    assert last_line(done.stdout) == f"finished; open {folder}/preview.png and {folder}/000004/index.html"
    done = run_script(ROOT / "only_evaluate.py", f"--trained_model_folder={folder}", "--output_folder=e", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_script(
        ROOT / "only_edit.py",
        f"--trained_model_folder={folder}",
        "--output_folder=out",
        "--edit_background_path=e/texture_orig2_alpha.png",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "edited_demo.mp4").stat().st_size > 0


@pytest.mark.slow
def test_a_portrait_clip_of_two_frames_with_odd_sides_runs_through(tmp_path):
    draw(tmp_path / "my data", width=27, height=41, frames=2)
    write_config(tmp_path / "c.json", tiny_config(tmp_path, "out of it", data_folder="my data/demo"))
    done = run_script(ROOT / "train.py", "c.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (metrics,) = (tmp_path / "out of it").rglob("metrics.json")
    assert metrics.with_name("edit_demo.mp4").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a config file or --resume RUN_FOLDER"),
        (["none.json"], "none.json: no such file"),
        (["--resume", "nowhere"], "nowhere: no such run folder"),
        (["--resume", "."], ". has no config.json; --resume takes the folder of a run"),
        (["none.json", "--time_budget", "nan"], "--time_budget is nan, expected seconds above 0"),
    ],
)
def test_train_refuses_wrong_input_in_one_line_with_exit_code_2(tmp_path, arguments, message):
    done = run_script(ROOT / "train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in last_line(done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_wrong_clip_leaves_no_run_folder_behind(tmp_path):
    path = write_config(tmp_path / "c.json", tiny_config(tmp_path / "swan", tmp_path / "results"))
    done = run_script("train.py", path)
    assert done.returncode == 2
    assert "swan: no such folder" in last_line(done.stderr)
    assert not (tmp_path / "results").exists()
