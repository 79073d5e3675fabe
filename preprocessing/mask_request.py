"""The request for masks: which objects, by which method."""

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class MaskRequest:
    """Which masks to write, and by which method. The names of the fields are the keys of the note beside the masks."""

    method: str = "auto"  # auto, maskrcnn, detectron2, motion or import
    class_name: str = "anything"  # class of the object, or "anything"
    weights: Path | None = None  # local file with the weights of the detector
    instance: int | None = None  # number of the object, counted from 1; the surest and longest visible one comes first
    point: tuple[float, float, int] | None = None  # a pixel of the object: x, y in pixels, and the number of the frame
    objects: int = 1  # number of objects; several are also written into a folder for each
    source: Path | None = None  # folder of pictures or video, for the method "import"
    label: int | None = None  # the only label to import, of label pictures
    threshold: float | None = None  # import hard masks: inside above this value in [0, 1]

    @property
    def changed_options(self) -> dict[str, str]:
        """The options that differ from their defaults, as text. They are noted beside the masks."""
        defaults = MaskRequest()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value != getattr(defaults, name)}
