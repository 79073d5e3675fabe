"""The editor as one file: a page that plays and paints without the program, to send to somebody."""

import base64
import json
from pathlib import Path
from typing import Any

import media
from browser import WEB
from browser.editor import Editor
from browser.project_folder import ProjectFolder, encode_part
from command_line import UserError
from editing.project import FILE

STYLE = '<link rel="stylesheet" href="web/style.css">'
LIBRARY = '<script src="web/vendor/konva.min.js"></script>'
IMPORTS = '{"imports": {"editor/": "./web/", "perfect-freehand": "./web/vendor/perfect-freehand.js"}}'
START = '<script type="module">'
BAKED_SUFFIXES = {".jpg", ".png", ".bin", ".m4a"}


def write_page(editor: Editor, path: Path) -> int:
    """Write the page of a run and its project, and return its size in bytes.

    Raises UserError if the path is a folder, or if a picture of the project is gone.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; --export_page takes the name of a file such as swan.html")
    html = (WEB / "index.html").read_text(encoding="utf-8")
    library = (WEB / "vendor" / "konva.min.js").read_text(encoding="utf-8")
    parts = {
        STYLE: f"<style>\n{(WEB / 'style.css').read_text(encoding='utf-8')}</style>",
        LIBRARY: f"<script>{escape_end(library)}</script>",
        IMPORTS: json.dumps({"imports": inline_modules()}),
        START: f'<script type="application/json" id="inline-run">{describe_run(editor)}</script>\n{START}',
    }
    for place, content in parts.items():
        assert html.count(place) == 1, place
        html = html.replace(place, content)
    media.make_folder(path.resolve().parent)
    media.write_text(path, html)
    return path.stat().st_size


def inline_modules() -> dict[str, str]:
    """Return the address of each module of the page as data, by the name under which it is imported."""
    modules = {f"editor/{path.name}": path for path in sorted(WEB.glob("*.js"))}
    modules["perfect-freehand"] = WEB / "vendor" / "perfect-freehand.js"
    return {name: data_url(path.read_bytes(), "text/javascript") for name, path in modules.items()}


def describe_run(editor: Editor) -> str:
    """Return the run, its project and all their pictures as JSON."""
    project = editor.project.load()
    files = {
        path.name: base64.b64encode(path.read_bytes()).decode()
        for path in sorted(editor.bake_folder.iterdir())
        if path.suffix in BAKED_SUFFIXES
    }
    pictures, file_parts = collect_pictures(editor.project, project or {"layers": []})
    run = {"bake": editor.bake, "project": project, "files": files, "pictures": pictures, "file_parts": file_parts}
    return json.dumps(run).replace("<", "\\u003c")  # Nothing in it can end or open an element of the page.


def collect_pictures(
    folder: ProjectFolder, project: dict[str, Any]
) -> tuple[dict[str, str], dict[str, list[dict[str, str | None]]]]:
    """Return placed pictures, and the parts of files that other programs painted, as data, by name."""
    pictures, parts = {}, {}
    for layer in project["layers"]:
        if layer["kind"] == FILE:
            name = layer["picture"]
            read = folder.read_paint_file(name)
            parts[name] = [{"blend": part.blend, "picture": data_url(encode_part(part), "image/png")} for part in read]
        for placed in layer.get("objects", []):
            source = placed.get("source", "")
            if source and not source.startswith("data:"):
                pictures[source] = data_url(folder.find_picture(source).read_bytes(), "image/png")
    return pictures, parts


def data_url(content: bytes, kind: str) -> str:
    """Return an address that holds its content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def escape_end(script: str) -> str:
    """Return a script in which nothing ends the element of the page that holds it."""
    return script.replace("</", "<\\/")
