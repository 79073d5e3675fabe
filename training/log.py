"""The curve of a run, as lines of JSON and as TensorBoard events."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from media import write_text


@dataclass
class Log:
    """The run's curve in log.jsonl, a line a report: {"iteration": 50, "total": ..., "color": ..., ...}."""

    path: Path
    rows: list[dict[str, float]] = field(default_factory=list)

    def restore(self, iteration: int) -> None:
        """Read the lines up to an iteration and drop later ones: they belong to steps that will be done again."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.rows = [row for row in map(parse_line, lines) if row and row["iteration"] <= iteration]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: dict[str, float]) -> None:
        """Append one line."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def parse_line(line: str) -> dict[str, float] | None:
    """One line of the log; None for one that a killed run left unfinished."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


@contextmanager
def open_tensorboard(folder: Path, iteration: int) -> Iterator[Any]:
    """TensorBoard events of the run; on resuming, what lies after the checkpoint is disregarded."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=iteration + 1 if iteration else None)
    try:
        yield writer
    finally:
        writer.close()
