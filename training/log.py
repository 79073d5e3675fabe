"""The log of a run: its loss and PSNR over the iterations, as lines of JSON and as TensorBoard events."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from media import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class Log:
    """The file log.jsonl of a run. Each report is one line: {"iteration": 50, "total": ..., "color": ..., ...}."""

    path: Path
    rows: list[dict[str, float]] = field(default_factory=list)

    def restore(self, iteration: int) -> None:
        """Read the lines up to an iteration and delete later ones, because their steps will be done again."""
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
    """Parse one line of the log. Return None for a line that a killed run left unfinished."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


@contextmanager
def open_tensorboard(folder: Path, iteration: int) -> Iterator["SummaryWriter"]:
    """Open a writer of TensorBoard events. If a run is resumed, TensorBoard ignores events after this iteration."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=iteration + 1 if iteration else None)
    try:
        yield writer
    finally:
        writer.close()
