"""Layered files in Krita itself: opened, painted on by a script, saved and read back as they are."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from editing.layered_files import read_paint
from export.openraster import write_openraster
from export.photoshop import write_psd
from media import Pixels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("krita") and shutil.which("xvfb-run")),
        reason="Krita and Xvfb are not installed (Debian: apt-get install krita xvfb)",
    ),
]

SIZE = (120, 200)  # height and width
PAINT_SCRIPT = """
from krita import Krita

application = Krita.instance()
application.setBatchmode(True)
document = application.openDocument("{source}")
layer = document.nodeByName("paint here")
layer.setPixelData(bytes([60, 30, 200, 255]) * 400, 100, 20, 20, 20)
document.refreshProjection()
document.waitForDone()
for target in {targets}:
    document.saveAs(target)
document.close()
"""


def draw_layers() -> dict[str, Pixels]:
    """Return the layers of an exported file, with an opaque and a transparent stroke on the one for paint."""
    random = np.random.default_rng(0)
    atlas = np.dstack((random.integers(0, 255, (*SIZE, 3), np.uint8), np.full(SIZE, 255, np.uint8)))
    guide, paint = np.zeros((*SIZE, 4), np.uint8), np.zeros((*SIZE, 4), np.uint8)
    guide[50] = 255
    paint[30:60, 40:90] = (200, 30, 60, 255)
    paint[70:90, 100:150] = (20, 200, 60, 128)
    return {"guide": guide, "paint here": paint, "atlas": atlas}


def write_layers(path: Path) -> None:
    """Write the layers as the kind of file that the name says; "16" in it stands for 16 bits."""
    layers = draw_layers()
    if path.suffix == ".ora":
        write_openraster(path, layers)
    else:
        write_psd(
            path, {name: layer / np.float32(255) for name, layer in layers.items()}, 16 if "16" in path.stem else 8
        )


def run_krita(program: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Run a program of Krita without a screen."""
    command = ["xvfb-run", "-a", program, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, timeout=120, env=os.environ | environment)


def read_single_paint(path: Path) -> np.ndarray:
    """Return the paint of a layered file, (h, w, 4) from 0 to 255, premultiplied."""
    (part,) = read_paint(path)
    return part.rgba * 255


@pytest.mark.parametrize("source", ["a.ora", "a.psd", "a16.psd"])
@pytest.mark.parametrize("suffix", ["ora", "psd"])
def test_what_krita_saves_is_the_paint_alone_with_its_colours(tmp_path, source, suffix):
    write_layers(tmp_path / source)
    target = tmp_path / f"saved.{suffix}"
    done = run_krita("krita", "--export", "--export-filename", target, tmp_path / source)
    assert done.returncode == 0, done.stderr
    paint = draw_layers()["paint here"].astype(np.float32)
    expected = np.dstack((paint[..., :3] * paint[..., 3:] / 255, paint[..., 3:]))
    assert np.abs(read_single_paint(target) - expected).max() <= 1.5


def test_paint_of_a_script_in_krita_is_read_back(tmp_path):
    if subprocess.run(["/usr/bin/python3", "-c", "import PyQt5"], capture_output=True, check=False).returncode:
        pytest.skip("Krita's scripts need PyQt5 (Debian: apt-get install python3-pyqt5)")
    write_layers(tmp_path / "a.ora")
    targets = [str(tmp_path / "painted.ora"), str(tmp_path / "painted.psd")]
    (tmp_path / "paint.py").write_text(PAINT_SCRIPT.format(source=tmp_path / "a.ora", targets=targets))
    # Krita's runner of scripts may crash when it ends, after it has saved: what it saved is checked below.
    run_krita("kritarunner", "-s", "paint", PYTHONPATH=str(tmp_path))
    for target in targets:
        paint = read_single_paint(Path(target))
        np.testing.assert_allclose(paint[25, 110], [200, 30, 60, 255], atol=1.5)
        np.testing.assert_allclose(paint[40, 60], [200, 30, 60, 255], atol=1.5)
        assert (paint[..., 3] > 0).sum() == 30 * 50 + 20 * 50 + 20 * 20
