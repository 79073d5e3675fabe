"""The editor's page in a real browser, for tests and measurements: Chromium without a window, drawn in software."""

import base64
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from command_line import UserError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0
BROWSER_PROGRAMS = (  # a variable that may hold the path of a program, and names under which it may be found
    ("CHROME", "chromium", "chromium-browser", "google-chrome"),
    ("CHROMEDRIVER", "chromedriver"),
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--mute-audio",
)


def find_browser() -> tuple[str, str]:
    """Return the paths of Chromium and of its driver. Raises UserError if one of them is missing."""
    found = []
    for variable, *names in BROWSER_PROGRAMS:
        path = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
        if path is None:
            raise UserError(f"needs {names[0]} on the PATH, or its path in {variable}")
        found.append(path)
    return found[0], found[1]


class Server:
    """edit_in_browser.py in a process of its own."""

    def __init__(self, run: Path, project: Path, *flags: str):
        command = [sys.executable, "edit_in_browser.py", "--no_browser", "--port=0"]
        command += [f"--trained_model_folder={run}", f"--project={project}", *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self.output: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith("the editor is at "):
                self.address = line.split()[-1]
                return
        raise AssertionError("".join(self.output))

    def stop(self) -> None:
        """Kill the program, as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def serve(run: Path, project: Path, *flags: str) -> Iterator[Server]:
    """Run the editor for a run and a project."""
    server = Server(run, project, *flags)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def open_chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """Open a browser whose files are in a folder."""
    options = webdriver.ChromeOptions()
    options.binary_location, chromedriver = find_browser()
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.set_script_timeout(PATIENCE_S)
    size = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The editor's page. Places are pixels of working size in the frame that is painted on."""

    def __init__(self, driver: webdriver.Chrome, address: str):
        self.driver = driver
        driver.get(address)
        driver.get_log("browser")  # forgets what the page before reported
        self.wait(lambda: self.run("return document.body.dataset.ready"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, and return its result; `app` is the page's state."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Return the first result of a condition that counts as true."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if result := condition():
                return result
            time.sleep(0.05)
        raise AssertionError(f"waited in vain; the page says: {self.message}, {self.banner}, {self.errors()}")

    @property
    def message(self) -> str:
        """What the page says in its last line."""
        return self.text("message")

    @property
    def banner(self) -> str:
        """What the page says in the middle, if something went wrong."""
        return self.run("const b = document.getElementById('banner'); return b.hidden ? '' : b.textContent")

    def text(self, name: str) -> str:
        """Return the text of an element."""
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    def errors(self) -> list[str]:
        """Return what the browser reports as errors, apart from answers that the page shows itself."""
        logs = self.driver.get_log("browser")
        return [row["message"] for row in logs if row["level"] == "SEVERE" and "status of" not in row["message"]]

    def go_to(self, t: int) -> None:
        """Show a frame in both panes."""
        self.run("app.goTo(arguments[0])", t)
        self.wait(lambda: self.run("return app.frames.get(arguments[0]) !== undefined", t))

    def frame(self, t: int) -> np.ndarray:
        """Return a frame of the edited video as the page shows it, (H, W, 3)."""
        self.go_to(t)
        address = self.run("app.showPlayed(app.player.t); return document.getElementById('play-canvas').toDataURL()")
        picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
        return np.asarray(picture.convert("RGB")).astype(float)

    def drag(self, *places: tuple[float, float]) -> None:
        """Press the pointer at the first place, move it over the others, and let it go."""
        stage = self.driver.find_element(By.ID, "paint-stage")
        size = stage.size
        chain = ActionChains(self.driver, duration=20)
        for number, place in enumerate(places):
            x, y = self.run("return app.view.toScreen(arguments[0])", place)
            chain.move_to_element_with_offset(stage, round(x - size["width"] / 2), round(y - size["height"] / 2))
            if number == 0:
                chain.click_and_hold()
        chain.release().perform()

    def press(self, *keys: str) -> None:
        """Press keys together, as a person does with a hand on the canvas."""
        self.run("document.getElementById('paint-stage').focus()")
        chain = ActionChains(self.driver)
        for key in keys:
            chain.key_down(key)
        for key in reversed(keys):
            chain.key_up(key)
        chain.perform()

    def clear(self) -> None:
        """Begin with an empty project."""
        self.run(
            "app.store.replace({...app.store.project, layers: [], hidden: [],"
            "  mend: {pins: [], strokes: [], rigidity: {}}})"
        )
        self.save()

    def save(self) -> None:
        """Wait until everything is saved."""
        self.wait(lambda: self.text("saved").startswith("saved") and not self.run("return app.server.isDirty"))

    def place_picture(self, picture: np.ndarray, place: tuple[float, float]) -> None:
        """Drop a picture file at a place."""
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        self.drop("logo.png", stream.getvalue(), place)

    def drop(self, name: str, content: bytes, place: tuple[float, float]) -> None:
        """Drop a file at a place, and wait until the page has dealt with it."""
        self.driver.execute_async_script(
            "const [name, content, place, done] = arguments;"
            "const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));"
            "app.placePicture(new File([bytes], name, {type: 'image/png'}), place).then(done)",
            name,
            base64.b64encode(content).decode(),
            place,
        )
