"""A run as the page of the editor needs it, and projects that are rendered without a browser."""

import base64
import json
import shutil

import numpy as np
import pytest
from conftest import finish_grid_run, last_line, run_script
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from browser.bake import bake_run, mapping_nodes, place_nodes, read_bake
from browser.editor import Editor
from browser.project_folder import OutdatedProject, ProjectFolder, find_project_folder, find_revision
from browser.server import MOST_UPLOAD_BYTES, make_app
from command_line import UserError
from editing.project import read_project
from masks.strokes import draw_strokes, read_strokes
from media import write_png
from rendering.frames import render_frames
from rendering.trained_run import open_run

LARGEST_ERROR_PX = 0.1  # of the interpolated mapping where a layer is seen


@pytest.fixture(scope="module")
def grid_run(tmp_path_factory):
    """Folder of a finished run of grids."""
    return finish_grid_run(tmp_path_factory, 96, 64, 20, light=True).folder


@pytest.fixture(scope="module")
def editor(grid_run, tmp_path_factory):
    return Editor(grid_run, tmp_path_factory.mktemp("project"), {"device": "cpu"})


@pytest.fixture
def client(editor):
    return TestClient(make_app(editor, {"127.0.0.1:8000"}, None), base_url="http://127.0.0.1:8000")


def baked_mappings(folder, description, t):
    """Return the mappings of a baked frame at every pixel, (L, H, W, 2), interpolated as the page does."""
    rows, columns = (np.array(description["lattice"][key]) for key in ("rows_px", "columns_px"))
    layers, clip = len(description["layers"]), description["clip"]
    raw = (folder / f"{t:05d}.bin").read_bytes()
    uv = np.frombuffer(raw, "<f4", layers * len(rows) * len(columns) * 2).reshape(layers, len(rows), len(columns), 2)

    def along(values, nodes, side, axis):
        at = np.arange(side)
        low = (np.searchsorted(nodes, at, side="right") - 1).clip(0, len(nodes) - 2)
        shape = [-1 if each == axis else 1 for each in range(4)]
        share = ((at - nodes[low]) / (nodes[low + 1] - nodes[low])).reshape(shape)
        return np.take(values, low, axis) * (1 - share) + np.take(values, low + 1, axis) * share

    return along(along(uv, rows, clip["height"], 1), columns, clip["width"], 2)


@pytest.mark.parametrize("representation", ["grid", "mlp"])
def test_the_mapping_between_the_nodes_is_right_to_a_tenth_of_a_pixel(grid_run, finished_run, tmp_path, representation):
    run = open_run(grid_run if representation == "grid" else finished_run, device="cpu")
    description = bake_run(run, tmp_path)
    for frame in render_frames(run.model, run.clip, True, with_colors=False):
        baked = baked_mappings(tmp_path, description, frame.t)
        for layer, px_per_uv in enumerate(run.px_per_uv):
            error_px = np.linalg.norm(baked[layer] - frame.uv[layer], axis=-1) * px_per_uv
            assert error_px[frame.visibility[layer] > 0.5].max(initial=0) < LARGEST_ERROR_PX


def test_nodes_lie_on_the_kinks_and_are_never_far_apart(grid_run):
    run = open_run(grid_run, device="cpu")
    rows, columns = run.model.mapping_kinks()
    nodes = mapping_nodes(run)
    for kinks, positions, side in ((rows, nodes.rows_px, 64), (columns, nodes.columns_px, 96)):
        assert all(np.abs(positions - kink).min() < 1e-3 for kink in kinks)
        assert (positions[0], positions[-1]) == (0, side - 1)
        assert np.diff(positions).max() <= 16 + 1e-6
    np.testing.assert_allclose(place_nodes(17, [], 8), [0, 8, 16])


def test_baked_files_are_used_again_until_the_run_changes(grid_run, tmp_path):
    run = open_run(grid_run, device="cpu")
    description = bake_run(run, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert bake_run(run, tmp_path) == description
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    changed = json.loads((tmp_path / "bake.json").read_text()) | {"fingerprint": "another"}
    (tmp_path / "bake.json").write_text(json.dumps(changed))
    assert read_bake(tmp_path, run) is None


# the server


def test_only_the_page_itself_may_use_the_server(client):
    assert client.get("/api/state").status_code == 200
    own = {"Origin": "http://127.0.0.1:8000"}
    assert client.post("/api/cancel", headers=own).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        answer = client.post("/api/cancel", headers=headers)
        assert answer.status_code == 403
        assert answer.text.startswith("refused: ")
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/api/events", headers={"Origin": "http://evil.example"}),
    ):
        pass


def test_a_token_is_asked_for_if_there_is_one(editor):
    client = TestClient(make_app(editor, None, "secret"), base_url="http://10.0.0.1:80")
    assert client.get("/api/state").status_code == 403
    assert client.get("/?token=guess").status_code == 403
    assert client.get("/?token=secret").status_code == 200
    assert client.get("/api/state").status_code == 200, "the browser keeps the token as a cookie"


def test_no_path_leaves_the_folders(client, editor, tmp_path):
    (editor.project.folder.parent / "secret.png").write_bytes(b"secret")
    for name in ("../secret.png", "/etc/passwd", "project.json"):
        answer = client.get("/api/picture", params={"name": name})
        assert answer.status_code == 400, name
    fingerprint = editor.bake_folder.name
    for address in (f"/bake/{fingerprint}/..%2F..%2Fproject.json", "/bake/../bake.json", "/bake/other/bake.json"):
        assert client.get(address).status_code == 404, address


def test_uploads_are_limited_and_decoded(client):
    answer = client.post("/api/pictures?name=a.png", content=b"no picture")
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "a.png: is no picture that can be read; give a PNG, JPEG or WebP",
    )
    answer = client.post("/api/pictures", content=b"x" * (MOST_UPLOAD_BYTES + 1))
    assert answer.status_code == 413
    assert "64 MB" in answer.json()["error"]


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("browser.project_folder.MOST_PIXELS", 99)
    write_png(tmp_path / "large.png", np.zeros((10, 10, 4), np.uint8))
    with pytest.raises(UserError, match="has 10 x 10 pixels"):
        ProjectFolder(tmp_path).add_picture("large.png", (tmp_path / "large.png").read_bytes())


# projects


def make_project(editor, **changes):
    """Return a project with a red layer over the background's atlas, without the file of its picture."""
    bake = editor.bake
    layer = {"id": "a", "name": "red", "kind": "paint", "layer": 1, "visible": True, "locked": False, "opacity": 1}
    layer |= {"blend": "normal", "attached": False, "objects": [], "picture": "pictures/red.png"}
    return {
        "format": 1,
        "clip": bake["clip"],
        "run": bake["run"],
        "checkpoint": bake["checkpoint"],
        "surfaces": [each["surface"] for each in bake["layers"]],
        "hidden": [],
        "layers": [layer],
        "mend": {"pins": [], "strokes": [], "rigidity": {}},
    } | changes


def write_project(editor, folder, with_picture=True, **changes):
    folder.mkdir(exist_ok=True)
    project = make_project(editor, **changes)
    if with_picture:
        (folder / "pictures").mkdir(exist_ok=True)
        surface = project["surfaces"][1]
        red = np.full((surface["height"], surface["width"], 4), (255, 0, 0, 255), np.uint8)
        write_png(folder / "pictures" / "red.png", red)
    (folder / "project.json").write_text(json.dumps(project))
    return folder / "project.json"


def edit(run, project, output, *flags):
    return run_script(
        "only_edit.py", f"--trained_model_folder={run}", f"--project={project}", f"--output_folder={output}", *flags
    )


def read_edited(output, t):
    (folder,) = output.glob("edited_*/")
    return np.asarray(Image.open(sorted(folder.iterdir())[t])).astype(int)


def test_a_project_is_rendered_without_a_browser(editor, grid_run, tmp_path):
    project = write_project(editor, tmp_path / "project")
    assert edit(grid_run, project, tmp_path / "out", "--format=png").returncode == 0
    picture = read_edited(tmp_path / "out", 3)
    alpha = next(
        frame.alpha[0] for frame in render_frames(editor.run.model, editor.run.clip, True, False) if frame.t == 3
    )
    red = (picture[..., 0] > 150) & (picture[..., 1] < 60)
    assert red[alpha < 0.05].mean() > 0.98
    assert red[alpha > 0.95].mean() < 0.05


def test_a_project_may_hold_its_pictures_itself(editor, grid_run, tmp_path):
    project = write_project(editor, tmp_path / "project")
    values = json.loads(project.read_text())
    picture = (project.parent / "pictures" / "red.png").read_bytes()
    values["layers"][0]["picture"] = "data:image/png;base64," + base64.b64encode(picture).decode()
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(values))
    for each, output in ((project, "a"), (alone, "b")):
        assert edit(grid_run, each, tmp_path / output, "--format=png").returncode == 0
    np.testing.assert_array_equal(read_edited(tmp_path / "a", 2), read_edited(tmp_path / "b", 2))


@pytest.mark.parametrize(
    ("changes", "with_picture", "message"),
    [
        ({}, False, 'the picture red.png of the layer "red" is gone'),
        ({"clip": {"name": "other", "frames": 6, "width": 96, "height": 64}}, True, "painted for the clip other"),
        ({"clip": {"name": "other", "frames": 9}}, True, "painted for other with 9 frames and 2 layers"),
        ({"format": 7}, True, "has the format 7, expected 1"),
        ({"layers": 3}, True, "damaged"),
    ],
)
def test_a_project_that_cannot_be_used_is_explained_in_one_line(
    editor, grid_run, tmp_path, changes, with_picture, message
):
    project = write_project(editor, tmp_path / "project", with_picture, **changes)
    done = edit(grid_run, project, tmp_path / "out")
    assert done.returncode == 2
    assert message in last_line(done.stderr)
    assert not (tmp_path / "out").exists()


def test_a_project_names_no_picture_outside_of_its_folder(editor, tmp_path):
    write_png(tmp_path / "outside.png", np.zeros((4, 4, 4), np.uint8))
    project = write_project(editor, tmp_path / "project")
    values = json.loads(project.read_text())
    values["layers"][0]["picture"] = "../outside.png"
    project.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is outside of its folder"):
        read_project(project)


def test_a_project_is_only_saved_over_the_state_that_the_page_knows(editor, tmp_path):
    folder = ProjectFolder(tmp_path)
    first = folder.save(make_project(editor), 0)
    folder.save(make_project(editor), first)
    with pytest.raises(OutdatedProject):
        folder.save(make_project(editor, hidden=[0]), first)
    again = ProjectFolder(tmp_path)
    assert again.load()["hidden"] == []
    assert find_revision(again.load()) == 2, "a page stays right when the program is started again"


def test_a_damaged_project_is_kept_and_named(grid_run, tmp_path):
    (tmp_path / "project.json").write_text("{half a proj")
    done = run_script(
        "edit_in_browser.py", f"--trained_model_folder={grid_run}", f"--project={tmp_path}", "--no_browser"
    )
    assert done.returncode == 2
    assert "is no JSON; rename it to keep it" in last_line(done.stderr)
    assert (tmp_path / "project.json").read_text() == "{half a proj"


def test_a_missing_run_or_clip_is_explained(grid_run, tmp_path):
    done = run_script("edit_in_browser.py", f"--trained_model_folder={tmp_path / 'none'}")
    assert (done.returncode, "no such folder" in last_line(done.stderr)) == (2, True)
    done = run_script("edit_in_browser.py", f"--trained_model_folder={grid_run}", "--data_folder=nowhere")
    assert (done.returncode, "no such folder of frames" in last_line(done.stderr)) == (2, True)


def test_mask_strokes_become_pictures_that_training_reads(editor, tmp_path):
    strokes = [
        {"frame": 1, "object": 1, "points": [[10, 10], [20, 12]], "size": 5},
        {"frame": 1, "object": 0, "points": [[70, 50]], "size": 7},
    ]
    labels = read_strokes(draw_strokes(strokes, editor.run.clip, tmp_path / "strokes"), editor.run.clip)
    assert list(labels) == [1]
    assert (labels[1][11, 15], labels[1][50, 70], labels[1][30, 30]) == (1, 255, 0)
    with pytest.raises(UserError, match="mask stroke 1: frame 9"):
        draw_strokes([strokes[0] | {"frame": 9}], editor.run.clip, tmp_path / "wrong")


def test_a_downloaded_project_gets_a_folder_of_its_own_and_goes_on_there(tmp_path):
    (tmp_path / "pictures").mkdir()
    downloaded = tmp_path / "swan_project.json"
    downloaded.write_text("{}")
    folder = find_project_folder(downloaded)
    assert folder == tmp_path / "swan_project"
    (folder / "project.json").write_text('{"layers": []}')
    assert find_project_folder(downloaded) == folder
    assert (folder / "project.json").read_text() == '{"layers": []}', "what was done there is not overwritten"
    assert downloaded.read_text() == "{}"
    assert find_project_folder(folder / "project.json") == folder
    with pytest.raises(UserError, match="no such file"):
        find_project_folder(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "name", ["", ".", "../x.mp4", "export/../project.json", "exported_keys/x.mp4", "pictures/x.png"]
)
def test_only_exported_videos_can_be_downloaded(client, editor, name):
    folder = editor.project.folder
    (folder / "exported_keys").mkdir(exist_ok=True)
    (folder / "exported_keys" / "x.mp4").write_bytes(b"secret")
    assert client.get("/api/exported", params={"name": name}).status_code == 400


def test_a_refit_is_a_version_once_it_is_finished(grid_run, editor):
    refit = grid_run.with_name(f"{grid_run.name}_refit")
    refit.mkdir()
    shutil.copy2(grid_run / "checkpoint", refit / "checkpoint")
    assert [each["name"] for each in editor.describe()["runs"]] == [grid_run.name]
    (refit / "refit.json").write_text(json.dumps({"from": grid_run.name, "strokes": [], "rigidity": {"0": 2.0}}))
    runs = editor.describe()["runs"]
    assert [(each["name"], each["from"]) for each in runs] == [(grid_run.name, None), (refit.name, grid_run.name)]
    shutil.rmtree(refit)
    with pytest.raises(UserError, match="no such run"):
        editor.choose_run(refit.name)


def test_a_refit_without_anything_to_mend_is_refused(editor):
    editor.project.save(make_project(editor), find_revision(editor.project.load()))
    with pytest.raises(UserError, match="nothing to refit"):
        editor.refit({})
