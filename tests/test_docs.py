"""What the documents claim about the tree is true."""

import ast
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from batches.manifest import COLUMNS
from config import Config

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN_BY_RUNS = {"config.json", "metrics.json", "my_config.json", "atlas.json", "NAME_maskrcnn.json", "project.json"}
WRITTEN_BY_RUNS |= {"log.txt", "state.json", "running.json"}


def tracked_files() -> list[Path]:
    """The files of the project, relative to its root, without what lies beside them on a developer's machine."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("this copy is no git checkout, so the project's files cannot be told from others")
    return [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_every_file_that_a_document_names_exists():
    files = tracked_files()
    for document in DOCUMENTS:
        for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|json|txt))`", document.read_text()):
            ours = not name.startswith(("data/", "results/")) and name not in WRITTEN_BY_RUNS
            is_there = any(path.parts[-len(Path(name).parts) :] == Path(name).parts for path in files)
            assert not ours or is_there, f"{document.name} names {name}"


def test_every_picture_that_a_document_shows_exists():
    shown = [
        (document, name) for document in DOCUMENTS for name in re.findall(r"!\[.*?\]\((.+?)\)", document.read_text())
    ]
    assert len(shown) > 5
    for document, name in shown:
        assert (document.parent / name).is_file(), f"{document.name} shows {name}"


def test_every_link_within_a_document_leads_somewhere():
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r"\]\((?!https?:)(.+?)\)", document.read_text())
    ]
    assert len(links) > 20
    for document, link in links:
        assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_every_flag_that_a_document_names_is_one_of_a_script():
    sources = [path for path in tracked_files() if path.suffix == ".py" and path.parts[0] != "tests"]
    known = {flag for path in sources for flag in re.findall(r"\"(--[\w-]+)\"", (ROOT / path).read_text())}
    known |= {"--edit_foreground_at", "--edit_background_at"}  # their names are put together in a loop
    for document in DOCUMENTS:
        text = re.sub(r"`(?:git|oiiotool|pip) [^`]*`", "", document.read_text())
        named = set(re.findall(r"(?<![\w-])--[a-z]\w[\w-]*", text)) - {
            "--init",
            "--help",
            "--crop",
            "--nproc_per_node",
        }  # of git, argparse, oiiotool, torchrun
        assert named <= known, f"{document.name} names {sorted(named - known)}"


def test_every_flag_of_a_script_is_explained():
    explained = (ROOT / "docs" / "cli.md").read_text() + (ROOT / "docs" / "compositing.md").read_text()
    for script in sorted(SCRIPTS):
        source = (ROOT / f"{script}.py").read_text() + (ROOT / "command_line.py").read_text()
        for flag in re.findall(r"\"(--[\w-]+)\"", source):
            assert re.search(rf"{flag}(?![\w-])", explained), f"docs/cli.md says nothing of {flag} of {script}.py"


def test_every_setting_that_a_document_sets_is_a_real_key():
    keys = {field.name for field in fields(Config)} | set(COLUMNS)
    for document in DOCUMENTS:
        named = set(re.findall(r"--set (\w+)=", document.read_text())) - {"key", "COLUMN"}
        assert named <= keys, f"{document.name} sets {sorted(named - keys)}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


SCRIPTS = {"train", "only_evaluate", "only_edit", "export_atlas", "export_layers", "unwrap_video"}
SCRIPTS |= {"preprocess_mask_rcnn", "preprocess_optical_flow", "edit_in_browser", "unwrap_many", "extend_run"}
ROOMS = [  # as docs/ARCHITECTURE.md: a module imports only from its own room and from rooms below it
    SCRIPTS,
    {"browser", "batches"},
    {"training", "preprocessing"},
    {"export"},
    {"evaluate", "editing"},
    {"evaluation"},
    {"rendering"},
    {"grids"},
    {"masks"},
    {"alignment"},
    {"implicit_neural_networks"},
    {"unwrap_utils"},
    {"media"},
    {"loss_utils", "config"},
    {"parallel"},
    {"command_line"},
]
ABOVE_ALL = {"benchmarks", "docs", "scenes", "tests"}  # they may use any room; no room uses them


def own_modules() -> dict[str, Path]:
    """Every module of the project by its name, but for the tests."""
    files = [path for path in tracked_files() if path.suffix == ".py" and path.parts[0] not in ("tests", "thirdparty")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(path: Path) -> set[str]:
    """The names of all modules that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_every_module_lies_in_a_room():
    known = set().union(*ROOMS) | ABOVE_ALL
    assert {room_of(module) for module in own_modules()} <= known


def test_a_room_imports_only_from_itself_and_from_rooms_below_it():
    level = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    modules = own_modules()
    assert len(modules) > 100
    for module, path in modules.items():
        if room_of(module) in ABOVE_ALL:
            continue
        for imported in imports_of(path) & modules.keys():
            here, there = room_of(module), room_of(imported)
            assert there == here or level.get(there, -1) > level[here], f"{module} imports {imported}"


def test_no_module_imports_a_script():
    for module, path in own_modules().items():
        assert not imports_of(path) & SCRIPTS, f"{module} imports a script"


def test_modules_import_each_other_in_no_circle():
    modules = own_modules()
    graph = {module: imports_of(path) & modules.keys() - {module} for module, path in modules.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
