"""The editor in a real browser: what is painted, saved, exported and mended there."""

import json
import re
import shutil
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import finish_grid_run, read_video, run_script
from PIL import Image
from selenium.webdriver.common.keys import Keys

from benchmarks.browser_page import Page, Server, find_browser, open_chromium, serve
from command_line import UserError
from media import write_png
from rendering.frames import render_frame
from rendering.point_tracks import follow_in_frame, pick_in_frame
from rendering.trained_run import open_run

FRAMES = 6
ON_OBJECT, ON_BACKGROUND = (60.0, 58.0), (30.0, 14.0)  # places in frame 0
SAME_DB = 40.0  # PSNR from which on two pictures count as the same, in decibels


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of a finished run of grids on a small clip."""
    return finish_grid_run(tmp_path_factory, 192, 112, 40, light=True).folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    try:
        find_browser()
    except UserError as error:
        pytest.skip(str(error))
    with open_chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Folder of the project that most tests share; each of them begins with an empty one."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def server(run, project):
    with serve(run, project) as server:
        sharpen_frames(run, project)
        yield server


def sharpen_frames(run: Path, project: Path) -> None:
    """Write the page's frames again almost without loss, so that what is compared is the compositing alone."""
    clip = open_run(run).clip
    (folder,) = project.glob("baked/*/")
    for t in range(FRAMES):
        Image.fromarray(clip.frame(t)).save(folder / f"{t:05d}.jpg", quality=100, subsampling=0)


@pytest.fixture
def page(driver, server):
    page = Page(driver, server.address)
    page.clear()
    yield page
    assert page.errors() == []
    page.run("app.server.isDirty = app.server.isBlocked = false")  # Leaving the page asks nothing.


def psnr(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(first - second)[where].mean(), 1e-9)))


def edit(run: Path, project: Path, folder: Path, *flags: str) -> list[np.ndarray]:
    """Render a project with only_edit.py, and return its frames."""
    command = ["only_edit.py", f"--trained_model_folder={run}", f"--project={project}"]
    done = run_script(*command, f"--output_folder={folder}", "--format=png", *flags)
    assert done.returncode == 0, done.stderr
    (pictures,) = folder.glob("edited_*/")
    return [np.asarray(Image.open(path)).astype(float) for path in sorted(pictures.iterdir())]


def paint(page: Page, *places: tuple[float, float], color: str = "#2060ff", size: int = 8, **brush) -> None:
    """Paint a stroke with the brush."""
    page.run("app.setTool('brush'); Object.assign(app.brush, arguments[0])", {"color": color, "size": size} | brush)
    page.drag(*places)


# painting


def test_a_stroke_shows_in_another_frame_where_the_mapping_says_and_nowhere_else(page, run):
    before = page.frame(5)
    page.go_to(0)
    paint(page, ON_OBJECT, (ON_OBJECT[0] + 2, ON_OBJECT[1]), size=6)
    changed = np.abs(page.frame(5) - before).max(-1) > 20
    opened = open_run(run)
    points = pick_in_frame(
        render_frame(opened.model, opened.clip, 0, True, False), np.array([[ON_OBJECT[0] + 1, ON_OBJECT[1]]])
    )
    assert points.layers[0] == 0
    (place,), _ = follow_in_frame(render_frame(opened.model, opened.clip, 5, True, False), points)
    y, x = np.nonzero(changed)
    assert np.hypot(x.mean() - place[0], y.mean() - place[1]) < 1.5
    assert np.hypot(x - place[0], y - place[1]).max() < 9


def test_the_preview_agrees_with_the_scripts(page, run, project, tmp_path):
    page.go_to(0)
    paint(page, ON_OBJECT, (68, 66), (60, 72), color="#20c0ff", hardness=0.9)
    paint(page, ON_BACKGROUND, (60, 26), (80, 18), color="#ffd020", hardness=0.1, opacity=0.6, size=12)
    logo = np.full((40, 60, 4), (200, 30, 90, 255), np.uint8)
    logo[::8] = 255
    page.place_picture(logo, (150, 80))
    page.run(
        "const {layer, object} = app.selectedObject(); const c = object.corners;"
        "const corners = [c[0], c[1], [c[2][0] + 9, c[2][1] + 5], c[3]];"
        "app.store.changeObject(layer.id, object.id, {mesh: null, corners})"
    )
    page.save()
    edited = edit(run, project, tmp_path / "edited")
    alone = edit(run, project, tmp_path / "alone", "--only_edit_layer")
    for t in (0, 3, 5):
        painted = alone[t][..., 3] > 8
        assert painted.mean() > 0.05
        assert psnr(page.frame(t), edited[t], painted) > SAME_DB


def test_blend_modes_agree_with_the_scripts(page, run, project, tmp_path):
    before = page.frame(3)
    page.go_to(0)
    for number, blend in enumerate(("multiply", "screen", "overlay", "color")):
        page.run(
            "app.selectLayer(app.store.addLayer({name: 'x', layer: 1, blend: arguments[0], opacity: 0.7}).id)", blend
        )
        paint(page, (110, 12 + 24 * number), (180, 16 + 24 * number), color="#8060ff", size=16, follows=False)
    page.save()
    expected = edit(run, project, tmp_path / "edited")[3]
    for number in range(4):
        painted = np.abs(expected - before).max(-1) > 20
        painted[: 24 * number] = painted[24 * number + 24 :] = False
        assert painted.mean() > 0.01
        assert psnr(page.frame(3), expected, painted) > SAME_DB


def test_a_recoloured_layer_agrees_with_the_scripts(page, run, project, tmp_path):
    before = page.frame(2)
    page.run("app.addRecolor(); app.store.changeLayer(app.layerId, {layer: 0, hue: 90, saturation: 1.2})")
    page.go_to(0)
    paint(page, ON_OBJECT, (66, 62), size=30)
    page.save()
    (expected,) = edit(run, project, tmp_path / "edited")[2:3]
    recolored = np.abs(expected - before).max(-1) > 30
    assert 0.01 < recolored.mean() < 0.1, "only where the mask was painted"
    assert psnr(page.frame(2), expected, recolored) > SAME_DB


def test_a_hidden_object_shows_what_is_behind_it(page, run, project, tmp_path):
    before = page.frame(2)
    page.run("app.toggleVideoLayer(0)")
    page.save()
    hidden = page.frame(2)
    (expected,) = edit(run, project, tmp_path / "edited")[2:3]
    assert np.abs(expected - before).max(-1).max() > 60
    assert psnr(hidden, expected, np.ones(hidden.shape[:2], bool)) > 30


def test_strokes_are_objects_that_can_be_undone_moved_and_erased(page):
    clean = page.frame(0)
    paint(page, ON_BACKGROUND, (60, 14), size=10)
    painted = page.frame(0)
    assert np.abs(painted - clean).max() > 100
    page.press(Keys.CONTROL, "z")
    np.testing.assert_array_equal(page.frame(0), clean)
    page.press(Keys.CONTROL, Keys.SHIFT, "z")
    np.testing.assert_array_equal(page.frame(0), painted)
    page.press("v")
    page.drag((45, 14), (120, 14))
    moved = page.frame(0)
    np.testing.assert_array_equal(moved[9:20, 25:65], clean[9:20, 25:65])
    assert np.abs(moved[10:18, 115:125] - clean[10:18, 115:125]).max() > 100
    page.press(Keys.DELETE)
    np.testing.assert_array_equal(page.frame(0), clean)


def test_a_picture_keeps_its_form_in_the_frame_in_which_it_is_placed_and_moved(page):
    page.place_picture(np.full((20, 40, 4), 255, np.uint8), ON_OBJECT)
    page.drag(ON_OBJECT, (ON_OBJECT[0] + 4, ON_OBJECT[1] - 3))
    points = np.array(
        page.run("const {layer, object} = app.selectedObject();return app.toPictureObject(layer.layer, object).mesh")
    )
    corners = points.reshape(13, 13, 2)[[0, 0, -1, -1], [0, -1, -1, 0]]
    shares = np.linspace(0, 1, 13)
    x, y = np.meshgrid(*(corners[0, axis] + shares * (corners[2] - corners[0])[axis] for axis in (0, 1)))
    np.testing.assert_allclose(points.reshape(13, 13, 2), np.stack((x, y), axis=-1), atol=0.1)
    np.testing.assert_allclose(corners.mean(0), np.add(ON_OBJECT, (4, -3)), atol=0.5)


def test_the_eraser_takes_paint_away(page):
    clean = page.frame(0)
    paint(page, ON_BACKGROUND, (60, 14), size=16, hardness=1)
    page.press("e")
    page.drag((45, 4), (45, 24))
    erased = page.frame(0)
    assert np.abs(erased[12:16, 43:47] - clean[12:16, 43:47]).max() < 3
    assert np.abs(erased[12:16, 32:36] - clean[12:16, 32:36]).max() > 60


def test_paint_on_an_atlas_is_paint_on_the_video(page):
    before = page.frame(0)
    page.run("app.paintOn('1'); app.store.addLayer({name: 'atlas', layer: 1}); app.setTool('brush')")
    width, height = page.run("return [app.view.canvas.width, app.view.canvas.height]")
    paint(page, (width * 0.4, height * 0.5), (width * 0.6, height * 0.5), size=20)
    page.run("app.paintOn('frame')")
    assert (np.abs(page.frame(0) - before).max(-1) > 60).sum() > 50


def test_the_page_keeps_few_frames_of_a_long_clip(page):
    page.run("app.frames.most = 2; app.frames.prefetch = () => {}")
    page.run("app.frames.loaded.clear(); app.compositor.frames.clear()")
    shown = [page.frame(t) for t in range(FRAMES)]
    assert page.run("return Math.max(app.frames.loaded.size, app.compositor.frames.size)") == 2
    np.testing.assert_array_equal(page.frame(0), shown[0])


# saving


def test_a_project_is_opened_again_without_loss(page, server):
    paint(page, ON_OBJECT, (68, 66))
    paint(page, ON_BACKGROUND, (60, 30), color="#ff8800")
    page.run("app.store.changeLayer(app.layerId, {name: 'sky', opacity: 0.5, blend: 'screen', locked: true})")
    page.run("app.store.changeMend({pins: [{id: 'a', layer: 0, places: [[0, 60, 58]]}]})")
    page.save()
    kept = page.run("return JSON.stringify(app.store.project.layers.map(({picture, ...layer}) => layer))")
    shown = page.frame(4)
    again = Page(page.driver, server.address)
    assert page.run("return JSON.stringify(app.store.project.layers.map(({picture, ...layer}) => layer))") == kept
    assert page.run("return app.store.project.mend.pins.length") == 1
    np.testing.assert_array_equal(again.frame(4), shown)


def test_a_killed_program_loses_nothing(driver, run, tmp_path):
    project = tmp_path / "project"
    with serve(run, project) as server:
        page = Page(driver, server.address)
        paint(page, ON_OBJECT, (68, 66))
        page.save()
        server.stop()
        page.wait(lambda: "has ended" in page.banner)
        paint(page, ON_BACKGROUND, (60, 30))
        assert len(json.loads((project / "project.json").read_text())["layers"]) == 1
        port = server.address.rsplit(":", 1)[1].rstrip("/")
        with serve(run, project, f"--port={port}"):
            page.wait(lambda: page.banner == "")
            page.save()
            assert len(json.loads((project / "project.json").read_text())["layers"]) == 2
            page.run("app.server.isDirty = false")
        driver.get_log("browser")


def test_two_tabs_do_not_overwrite_each_other(page, server, project):
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    other_window = page.driver.current_window_handle
    other = Page(page.driver, server.address)
    paint(other, ON_OBJECT, (68, 66))
    other.save()
    page.driver.switch_to.window(first)
    paint(page, ON_BACKGROUND, (60, 30), color="#ff8800")
    page.wait(lambda: "Another tab" in page.banner)
    assert len(json.loads((project / "project.json").read_text())["layers"]) == 1
    page.run("document.querySelectorAll('#banner button')[1].click()")
    page.wait(lambda: page.banner == "")
    page.save()
    (layer,) = json.loads((project / "project.json").read_text())["layers"]
    assert layer["objects"][0]["color"] == "#ff8800"
    page.driver.switch_to.window(other_window)
    other.run("app.server.isDirty = false")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.driver.get_log("browser")


def test_a_second_program_does_not_overwrite_the_project(page, driver, server, run, project):
    paint(page, ON_OBJECT, (68, 66))
    page.save()
    first = driver.current_window_handle
    with serve(run, project) as other_server:
        driver.switch_to.new_window("tab")
        other = Page(driver, other_server.address)
        paint(other, ON_BACKGROUND, (60, 30))
        other.save()
        driver.close()
    driver.switch_to.window(first)
    paint(page, (50, 50), (60, 50))
    page.wait(lambda: "Another tab" in page.banner)
    assert len(json.loads((project / "project.json").read_text())["layers"]) == 2
    page.run("document.querySelectorAll('#banner button')[0].click()")
    page.wait(lambda: page.banner == "" and page.run("return app.store.project.layers.length") == 2)
    driver.get_log("browser")


def test_a_file_that_another_program_saves_shows_at_once(page, project):
    before = page.frame(0)
    name = page.driver.execute_async_script(
        "const done = arguments[0]; app.server.makeFile(1).then((f) => done(f.name))"
    )
    assert (project / name).is_file()
    surface = page.run("return app.bake.layers[1].surface")
    write_png(project / "sky.png", np.zeros((surface["height"], surface["width"], 4), np.uint8))
    page.run("app.store.addLayer({kind: 'file', name: 'sky', layer: 1, picture: 'sky.png'}); app.loadFile('sky.png')")
    page.wait(lambda: "was read" in page.message)
    np.testing.assert_array_equal(page.frame(0), before)
    write_png(project / "sky.png", np.full((surface["height"], surface["width"], 4), (255, 0, 0, 255), np.uint8))
    page.wait(lambda: np.abs(page.frame(0) - before).max() > 100)


def test_a_file_of_another_size_than_the_atlas_lies_where_the_scripts_put_it(page, run, project, tmp_path):
    before = page.frame(2)
    surface = page.run("return app.bake.layers[1].surface")
    half = np.zeros((surface["height"] // 2, surface["width"] // 2, 4), np.uint8)
    half[: half.shape[0] // 3, : half.shape[1] // 2] = (255, 0, 0, 255)
    write_png(project / "half.png", half)
    page.run(
        "app.store.addLayer({kind: 'file', name: 'half', layer: 1, picture: 'half.png', surface: arguments[0]});"
        "app.loadFile('half.png')",
        surface,
    )
    page.wait(lambda: "half.png was read" in page.message)
    page.save()
    expected = edit(run, project, tmp_path / "edited")[2]
    painted = np.abs(expected - before).max(-1) > 20
    assert painted.mean() > 0.05
    assert psnr(page.frame(2), expected, np.ones(painted.shape, bool)) > 34


def test_a_file_that_is_no_picture_is_named_and_nothing_is_lost(page):
    paint(page, ON_OBJECT, (68, 66))
    page.drop("notes.png", b"no picture", ON_OBJECT)
    assert "notes.png: is no picture" in page.message
    assert page.run("return app.store.project.layers.length") == 1
    page.driver.get_log("browser")


# export and refit


def test_export_writes_the_edited_video_at_its_own_size(page, project):
    paint(page, ON_OBJECT, (68, 66))
    page.run("app.startJob('export', {format: 'mp4', native: true})")
    page.wait(lambda: "Exported to" in page.message)
    (video,) = (project / "export").glob("*.mp4")
    frames = list(read_video(video))
    assert len(frames) == FRAMES
    assert frames[0].shape == (112, 192, 3)
    link = page.run("return document.querySelector('#dialog a').href")
    assert urlopen(link).read() == video.read_bytes()
    page.run("app.dialogs.dialog.close()")


def test_an_export_can_be_cancelled(page, project):
    before = set(project.glob("export*/edited_*"))
    paint(page, ON_OBJECT, (68, 66))
    page.run("app.startJob('export', {format: 'png', native: true})")
    page.wait(lambda: page.run("return app.isBusy"))
    page.run("app.server.cancelJob()")
    page.wait(lambda: "was cancelled" in page.message)
    assert set(project.glob("export*/edited_*")) == before


def test_a_refit_makes_a_new_run_in_which_the_pins_hold(driver, run, tmp_path):
    with serve(run, tmp_path / "project") as server:
        check_refit(Page(driver, server.address), run)


PAINTED_PLACE = (
    "const {layers} = app.store.project; const {layer, objects} = layers.find((each) => each.layer === 0);"
    "return app.mapping.toFrame(app.frames.get(0), layer, objects[0].points[0].slice(0, 2))"
)


def check_refit(page: Page, run: Path) -> None:
    checkpoint = (run / "checkpoint").read_bytes()
    paint(page, ON_BACKGROUND, (60, 20))
    paint(page, ON_OBJECT, (66, 60))
    place = page.run(PAINTED_PLACE)
    page.go_to(0)
    page.press("n")
    page.drag(ON_OBJECT)
    page.go_to(5)
    (mark,) = page.run("return app.pinMarks().map((each) => app.view.toPicture(each.screen))")
    target = (mark[0] + 5, mark[1] + 3)
    page.drag(tuple(mark), target)
    (pin,) = page.run("return app.store.project.mend.pins")
    assert [place[0] for place in pin["places"]] == [0, 5]
    page.go_to(2)
    page.press("m")
    page.drag((150, 90), (160, 96))  # far beyond the object, so that its atlas has to grow
    page.run("app.startJob('refit', {seconds: 2})")
    page.wait(lambda: "Refitted" in page.message)
    assert (run / "checkpoint").read_bytes() == checkpoint
    refitted = run.with_name(page.run("return app.bake.run"))
    assert refitted != run
    page.go_to(0)
    error = page.run(
        "const pin = app.store.project.mend.pins[0]; const [a, b] = pin.places;"
        "return app.frames.load(5).then((frame) => {"
        "  const place = app.mapping.toSurface(app.frames.get(0), pin.layer, a.slice(1));"
        "  const [x, y] = app.mapping.toFrame(frame, pin.layer, place);"
        "  return Math.hypot(x - b[1], y - b[2]);"
        "})"
    )
    assert error < 0.1
    assert page.run("return app.store.project.layers.length") == 2, "edits are carried over"
    assert page.run("return app.bake.layers[0].surface.units[0]") > 1.05, "the atlas has grown"
    assert page.run("return app.store.project.mend.strokes") == []
    np.testing.assert_allclose(page.run(PAINTED_PLACE), place, atol=1.5)
    page.save()
    check_versions(page, run.name, refitted.name, place)
    assert page.errors() == []
    shutil.rmtree(refitted)


def check_versions(page: Page, original: str, refitted: str, place: list[float]) -> None:
    """Go back to the run before its refit, and on again."""
    refitted_place = page.run(PAINTED_PLACE)
    page.run("app.chooseRun(arguments[0])", original)
    page.wait(lambda: "This is the run" in page.message)
    np.testing.assert_allclose(page.run(PAINTED_PLACE), place, atol=1e-3)
    assert len(page.run("return app.store.project.mend.strokes")) == 1, "the stroke is needed again"
    page.run("app.say(''); app.chooseRun(arguments[0])", refitted)
    page.wait(lambda: "This is the run" in page.message)
    np.testing.assert_allclose(page.run(PAINTED_PLACE), refitted_place, atol=1e-3)
    assert page.run("return app.store.project.mend.strokes") == []


def test_the_page_works_as_one_file_without_the_program(page, driver, run, project, tmp_path):
    paint(page, ON_OBJECT, (68, 66))
    page.save()
    shown = page.frame(3)
    html = tmp_path / "share" / "swan.html"
    flags = [f"--trained_model_folder={run}", f"--project={project}", f"--export_page={html}"]
    done = run_script("edit_in_browser.py", *flags)
    assert done.returncode == 0, done.stderr
    assert f"wrote {html}" in done.stdout
    assert html.stat().st_size < 25e6
    alone = Page(driver, html.as_uri())
    np.testing.assert_array_equal(alone.frame(3), shown)
    paint(alone, ON_BACKGROUND, (60, 30), color="#ff8800")
    assert np.abs(alone.frame(3) - shown).max() > 100
    alone.run("app.player.play()")
    alone.wait(lambda: alone.run("return app.player.t") > 0)
    assert alone.errors() == []
    alone.run("app.server = {}")  # The fixture looks for what is not saved.


def test_a_server_for_others_needs_the_token(driver, run, tmp_path):
    with serve(run, tmp_path / "project", "--host=0.0.0.0") as server:
        address = re.sub(r"//.*?:", "//127.0.0.1:", server.address)
        bare = address.split("?")[0]
        for wrong in (bare, f"{bare}?token=guess"):
            driver.get(wrong)
            assert "refused: the token is missing or wrong" in driver.page_source
        page = Page(driver, address)
        page.frame(3)
        driver.get_log("browser")


def test_a_run_of_another_clip_is_refused_in_one_line(run, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    clip = {"name": "other", "frames": 9, "width": 64, "height": 32}
    values = {"clip": clip, "run": "x", "checkpoint": "y", "surfaces": [], "hidden": [], "layers": [], "mend": {}}
    (project / "project.json").write_text(json.dumps(values))
    with pytest.raises(
        AssertionError, match="painted for other with 9 frames of 64 x 32 but the run is of demo with 6"
    ):
        Server(run, project)
