"""The editor in the browser: what it shows of a run (`bake.py`), its project, its server, and its page (`web/`)."""

from pathlib import Path

WEB = Path(__file__).parent / "web"  # The files of the page.
