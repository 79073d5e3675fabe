"""Which masks are wanted, and by which method they are found."""

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class MaskRequest:
    """Which masks, and how to find them."""

    method: str = "auto"
    class_name: str = "anything"
    weights: Path | None = None
    instance: int | None = None  # the N-th object, counting from 1, the surest and longest first
    point: tuple[float, float, int] | None = None  # x, y in pixels of a frame, its number
    objects: int = 1  # how many, each into a folder of its own
    source: Path | None = None  # import: folder or video
    label: int | None = None
    threshold: float | None = None

    @property
    def changed_options(self) -> dict[str, str]:
        """What differs from the defaults, to be noted beside the masks."""
        defaults = MaskRequest()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value != getattr(defaults, name)}
