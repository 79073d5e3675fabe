"""Write docs/config.md, the table of all settings, from config.py.

python docs/write_config_page.py
"""

import json
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path

PAGE = Path(__file__).with_name("config.md")
sys.path.insert(0, str(PAGE.parents[1]))

from config import Config, Factors, Levels, type_name

HEAD = """# Settings

A config is a JSON file. Keys that the published code knows keep their names and meanings. `python train.py my.json
--set rgb_coeff=1000 --set resx=384` changes settings for one run. This page is written from `config.py` by
`python docs/write_config_page.py`.

| key | default | values | meaning |
|---|---|---|---|
"""


def values_text(described: Field) -> str:
    """What the values of a setting may be, in words."""
    limits = described.metadata
    if limits["choices"]:
        return ", ".join(f'`"{choice}"`' for choice in limits["choices"])
    if described.type == Levels:
        return "list of pairs [pixels, frames]"
    if described.type == Factors:
        return "list of numbers, at least 0"
    text = type_name(described)
    if "number" not in text:
        return text
    if limits["above"] is not None:
        return f"{text}, above {limits['above']}"
    text = f"{text}, at least {limits['at_least']}"
    return text if limits["at_most"] > 1e6 else f"{text}, at most {limits['at_most']}"


def page_text() -> str:
    """The whole page."""
    rows = []
    for described in fields(Config):
        default = "required" if described.default is MISSING else f"`{json.dumps(described.default)}`"
        meaning = described.metadata["meaning"]
        rows.append(f"| `{described.name}` | {default} | {values_text(described)} | {meaning} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page_text(), encoding="utf-8")
    print(f"wrote {PAGE}")
