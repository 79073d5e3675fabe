"""The editor in the browser: what it shows of a run (`bake.py`), its project, its server, and its page (`web/`)."""
