"""Measure the editor in the browser: what a run costs it, and how fast the page plays, and record a moving picture.

python benchmarks/editor.py RUN_FOLDER [--picture FILE.webp]

Chromium draws in software here (SwiftShader), which is slower than any graphics card. Printed: seconds to bake the run
and megabytes that are sent, by kind of file; frames per second of the edited video without paint, with three layers of
paint, and with the first object removed; milliseconds from a point of a stroke to the picture that shows it.
"""

import argparse
import io
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image

from benchmarks.browser_page import Page, open_chromium, serve
from command_line import UserError, run_script

PLAYED_S = 6.0  # Seconds over which frames are counted.
PICTURE_SIZE = (960, 540)  # of the moving picture, in pixels
PICTURE_MS = 120  # Time of one of its frames.


def main(arguments: list[str] | None = None) -> None:
    """Measure a run, or record the moving picture."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("run", type=Path, metavar="RUN_FOLDER", help="folder that train.py wrote")
    flags.add_argument("--picture", type=Path, metavar="FILE", help="record painting while it plays, as WebP or GIF")
    options = flags.parse_args(arguments)
    if not options.run.is_dir():
        raise UserError(f"{options.run}: no such folder; give a folder that train.py wrote")
    with tempfile.TemporaryDirectory() as folder, open_chromium(Path(folder) / "browser") as driver:
        begin = time.perf_counter()
        with serve(options.run, Path(folder) / "project") as server:
            started_s = time.perf_counter() - begin
            page = Page(driver, server.address)
            if options.picture is not None:
                record_painting(page, options.picture)
                print(f"wrote {options.picture}")
                return
            print(f"| from the start to the address, baking included | {started_s:.1f} s |")
            for row in measure_files(Path(folder) / "project" / "baked"):
                print(row)
            for row in measure_page(page):
                print(row)


def measure_files(folder: Path) -> list[str]:
    """Return rows with the sizes of the baked files."""
    sizes: dict[str, int] = {}
    for path in folder.rglob("*.*"):
        sizes[path.suffix] = sizes.get(path.suffix, 0) + path.stat().st_size
    kinds = {".jpg": "frames and atlases (JPEG)", ".png": "opacity (PNG)", ".bin": "mappings, light, trust"}
    rows = [f"| {name} | {sizes.get(suffix, 0) / 1e6:.1f} MB |" for suffix, name in kinds.items()]
    return [*rows, f"| all files | {sum(sizes.values()) / 1e6:.1f} MB |"]


THREE_STROKES = """
    for (let i = 0; i < 3; i++) {
      const layer = app.store.addLayer({name: "x", layer: i % 2});
      const points = [[50, 50], [250, 150 + 40 * i]];
      app.store.addObject(layer.id, {type: "stroke", points, size: 30, color: "#f40"});
    }"""
COUNT_FRAMES = """
    const [seconds, done] = arguments;
    (async () => {
      for (let t = 0; t < app.player.count; t++) await app.frames.load(t);
      let count = 0;
      const begin = performance.now();
      const tick = () => {
        app.showPlayed(count++ % app.player.count);
        app.playView.getImageData(0, 0, 1, 1); // waits until it is drawn
        const now = performance.now();
        if (now - begin < seconds * 1000) requestAnimationFrame(tick);
        else done(count / ((now - begin) / 1000));
      };
      tick();
    })()"""
TIME_STROKE = """
    const [count, done] = arguments;
    const layer = app.store.project.layers[0];
    const begin = performance.now();
    let i = 0;
    const step = () => {
      app.view.context.getImageData(0, 0, 1, 1);
      app.playView.getImageData(0, 0, 1, 1);
      if (i === count) {
        app.drawExtra(null, null);
        done((performance.now() - begin) / count);
        return;
      }
      const points = [[50, 50], [60 + 5 * i++, 90]];
      app.drawExtra(layer, {id: "y", type: "stroke", points, size: 12, color: "#04f"});
      requestAnimationFrame(() => requestAnimationFrame(step));
    };
    step();"""
STROKE_POINTS = 20


def measure_page(page: Page) -> list[str]:
    """Return rows with the speed of the page."""
    width, height = page.run("return [app.bake.clip.width, app.bake.clip.height]")
    rows = []
    for name, prepare in {
        "no paint": "",
        "three layers of paint": THREE_STROKES,
        "the first object removed, too": "app.toggleVideoLayer(0)",
    }.items():
        page.run(prepare)
        rate = page.driver.execute_async_script(COUNT_FRAMES, PLAYED_S)
        rows.append(f"| {name}, {width} x {height} | {rate:.0f} frames per second |")
    page.run("app.toggleVideoLayer(0)")
    delay_ms = page.driver.execute_async_script(TIME_STROKE, STROKE_POINTS)
    return [*rows, f"| a point of a stroke, until both panes show it | {delay_ms:.0f} ms |"]


def record_painting(page: Page, path: Path) -> None:
    """Record how somebody paints on a frame while the video plays beside it."""
    pictures: list[Image.Image] = []
    width, height = page.run("return [app.bake.clip.width, app.bake.clip.height]")
    start = page.run(
        "const [w, h] = arguments; let n = 0, sx = 0, sy = 0;"
        "for (let y = 0; y < h; y += 4) for (let x = 0; x < w; x += 4)"
        "  if (app.layerUnder([x, y]) === 0) { n++; sx += x; sy += y; }"
        "return [sx / n, sy / n]",
        width,
        height,
    )
    played = 0

    def shoot(count: int = 1) -> None:
        nonlocal played
        for _ in range(count):
            page.run("app.player.t = arguments[0] % app.player.count; app.showPlayed(app.player.t)", played)
            played += 1
            shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
            pictures.append(shot.resize(PICTURE_SIZE, Image.Resampling.LANCZOS))

    page.run("app.schedule = () => app.showPainted()")  # The right pane is driven by the recording.
    shoot(4)
    unit = min(width, height) / 12
    strokes = {
        "#ffd23c": [(-1.4, -0.9), (-0.9, -1.3), (-0.4, -0.9)],
        "#ff5a4e": [(0.4, -0.9), (0.9, -1.3), (1.4, -0.9)],
        "#38c0ff": [(-1.2, 0.9), (-0.4, 1.5), (0.4, 1.5), (1.2, 0.9)],
    }
    page.run("app.brush.size = Math.round(arguments[0]); app.brush.hardness = 1", unit / 2.5)
    for color, points in strokes.items():
        page.run("app.brush.color = arguments[0]; app.brushChanged()", color)
        places = [[start[0] + unit * x, start[1] + unit * y] for x, y in points]
        page.run("app.tools.brush.down(arguments[0], {})", places[0])
        for first, second in pairwise(places):
            for share in (0.5, 1.0):
                place = [a + share * (b - a) for a, b in zip(first, second, strict=True)]
                page.run("app.tools.brush.move(arguments[0], {})", place)
                page.run("app.drawMarks(app.view.toScreen(arguments[0]))", place)
                shoot()
        page.run("app.tools.brush.up()")
        shoot(2)
    page.run("app.drawMarks(null)")
    shoot(page.run("return app.player.count"))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=PICTURE_MS, loop=0, quality=70, method=6)


if __name__ == "__main__":
    run_script(main)
