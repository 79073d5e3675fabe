"""What the documents claim about the tree is true."""

import ast
import re
from dataclasses import fields

from conftest import ROOT

from config import Config

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN_BY_RUNS = {"config.json", "metrics.json", "my_config.json", "atlas.json", "NAME_maskrcnn.json"}


def test_every_file_that_a_document_names_exists():
    for document in DOCUMENTS:
        for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|json|txt))`", document.read_text()):
            ours = not name.startswith(("data/", "results/")) and name not in WRITTEN_BY_RUNS
            assert not ours or any(ROOT.rglob(name)), f"{document.name} names {name}"


def test_every_picture_that_a_document_shows_exists():
    shown = [
        (document, name) for document in DOCUMENTS for name in re.findall(r"!\[.*?\]\((.+?)\)", document.read_text())
    ]
    assert len(shown) > 5
    for document, name in shown:
        assert (document.parent / name).is_file(), f"{document.name} shows {name}"


def test_the_readmes_settings_are_real_keys():
    keys = {field.name for field in fields(Config)}
    table = (ROOT / "README.md").read_text().split("## Settings")[1].split("##")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, flags=re.MULTILINE)
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert len(named) > 8
    assert named <= keys
    assert {key for key in keys if key.startswith("grid_")} <= named


LEVELS = [  # as docs/ARCHITECTURE.md: a room imports only from rooms after it
    ["training", "edits.transfer", "export.layers", "preprocessing.masks"],
    [
        "export.atlas",
        "export.track",
        "preprocessing.flow",
        "preprocessing.mask_motion",
        "preprocessing.mask_import",
        "runs.earlier",
    ],
    ["evaluate", "editing"],
    ["edits.spread", "edits.atlas_file", "export.inverse", "runs.networks", "grids.learner"],
    ["edits.fields", "edits.layer_edit", "reporting.error_maps"],
    ["edits.mipmap", "reporting.figures"],
    ["rendering", "sampling", "grids.start"],
    ["runs.models", "grids.unwrap"],
    ["grids.model"],
    ["implicit_neural_networks", "alignment.layers", "alignment.evidence", "grids.fields"],
    ["alignment.transforms"],
    ["alignment.tracks"],
    ["unwrap_utils"],
    ["media.videos", "media.decoding", "media.flows", "edits.blending", "loss_utils", "config"],
    ["media.images"],
    ["media.files"],
    ["command_line"],
]


def test_a_room_imports_only_from_rooms_below_it():
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    for name, number in level.items():
        tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                # `media` stands for all that it hands on
                below = level.get("media.videos" if module == "media" else module)
                assert below is None or below > number, f"{name} imports {module}"
