"""The request for masks: which objects, by which method; and the flags that say where the objects are."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from command_line import UserError


@dataclass(frozen=True)
class Prompt:
    """Where an object is, or is not: a pixel or a box of a frame."""

    corners: tuple[tuple[float, float], ...]  # (x, y) of a point, or of a box's upper left and lower right corner
    t: int  # number of the frame
    object: int | None = None  # number of the object, from 1; None: as `MaskRequest.prompts_by_object` decides
    is_positive: bool = True  # False: a pixel that is not the object's

    @property
    def is_box(self) -> bool:
        """True for a box, False for a point."""
        return len(self.corners) == 2

    def __str__(self) -> str:
        """Return the prompt as the flag that gives it."""
        name = "--box" if self.is_box else "--point" if self.is_positive else "--negative"
        numbers = ",".join(f"{value:g}" for corner in self.corners for value in corner)
        suffix = "" if self.object is None else f",{self.object}"
        return f"{name} {numbers},{self.t}{suffix}"


@dataclass(frozen=True)
class MaskRequest:
    """Which masks to write, and by which method. The names of the fields are the keys of the note beside the masks."""

    method: str = "auto"  # auto, sam2, sam3, maskrcnn, detectron2, motion or import
    class_name: str = "anything"  # class of the object, or "anything"
    weights: Path | None = None  # local file with the weights of the detector, or folder with those of SAM 2 or 3
    instance: int | None = None  # number of the object, counted from 1; the surest and longest visible one comes first
    prompts: tuple[Prompt, ...] = ()  # where the objects are
    text: str | None = None  # what the objects are, in words
    candidate: int | None = None  # by motion: which of the candidates, counted from 1, the best guess first
    objects: int = 1  # number of objects; several are also written into a folder for each
    source: Path | None = None  # folder of pictures or video, for the method "import"
    label: int | None = None  # the only label to import, of label pictures
    threshold: float | None = None  # import hard masks: inside above this value in [0, 1]
    mask_kind: str | None = None  # import: "labels" or "matte"; None: as the pictures show

    @property
    def changed_options(self) -> dict[str, str]:
        """The options that differ from their defaults, as text. They are noted beside the masks."""
        defaults = MaskRequest()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
        return {name: " ".join(map(str, value)) if name == "prompts" else str(value) for name, value in changed.items()}

    def prompts_by_object(self) -> dict[int, list[Prompt]]:
        """Return the prompts of each object, by its number from 1 on.

        With as many points without a number as objects, each point starts an object of its own; else prompts without a
        number are object 1's.
        """
        plain = [prompt for prompt in self.prompts if prompt.object is None]
        each_starts_one = self.objects > 1 and len(plain) == len(self.prompts) == self.objects
        numbers = range(1, len(plain) + 1) if each_starts_one else [1] * len(plain)
        numbered = dict(zip(map(id, plain), numbers, strict=True))
        groups: dict[int, list[Prompt]] = {number: [] for number in range(1, self.objects + 1)}
        for prompt in self.prompts:
            groups.setdefault(prompt.object or numbered[id(prompt)], []).append(prompt)
        return dict(sorted(groups.items()))


def add_mask_kind_flag(flags: argparse._ActionsContainer) -> None:
    """Add the flag that says how the values of imported masks are read."""
    flags.add_argument(
        "--mask_kind",
        choices=("labels", "matte"),
        help="labels: every value or colour of --masks but black is the object; matte: values are opacity (default: as "
        "all pictures together show)",
    )


def add_prompt_flags(flags: argparse._ActionsContainer) -> None:
    """Add the flags that say where the objects are. All of them are collected in `prompts`."""
    flags.add_argument(
        "--point",
        dest="prompts",
        type=parse_point,
        action="append",
        default=[],
        metavar="X,Y,FRAME",
        help="a pixel of the object; several are possible, of several frames. X,Y,FRAME,2 is one of object 2; "
        "--objects 3 with three points starts an object at each. A detector takes one point",
    )
    flags.add_argument(
        "--negative", dest="prompts", type=parse_negative, action="append", metavar="X,Y,FRAME", help="not the object"
    )
    flags.add_argument(
        "--box", dest="prompts", type=parse_box, action="append", metavar="X0,Y0,X1,Y1,FRAME", help="around the object"
    )
    flags.add_argument(
        "--text", metavar="WORDS", help='what the object is, in words such as "the white swan", for sam3'
    )


def check_prompt_flags(options: argparse.Namespace) -> None:
    """Raise UserError for flags that say where or what the object is, or which guess to take, in contradiction."""
    if options.method == "sam2" and not options.prompts:
        raise UserError("--method sam2 needs to know where the object is; give --point X,Y,FRAME or --box")
    if (options.method == "sam3" or options.text is not None) and not (options.text or "").strip():
        raise UserError('--method sam3 needs to know what the object is; give --text "the white swan"')
    if options.text is not None and options.method not in (None, "auto", "sam3"):
        raise UserError(f"--text is for --method sam3, and --method is {options.method}; give one of the two")
    if options.text is not None and options.prompts:
        raise UserError(f"--text and {options.prompts[0]} both say which object; give one of the two")
    if options.text is not None and options.class_name != "anything":
        raise UserError("--text and --class_name both say what the object is; give one of the two")
    if options.candidate is not None and options.candidate < 1:
        raise UserError(f"--candidate is {options.candidate}, expected 1 or more")
    if options.candidate is not None and options.method != "motion":
        raise UserError("--candidate is for --method motion; add that, or leave --candidate out")


def parse_point(text: str) -> Prompt:
    """Parse X,Y,FRAME or X,Y,FRAME,OBJECT. Raises ArgumentTypeError."""
    return parse_prompt(text, 1, "X,Y,FRAME such as 320,200,0")


def parse_negative(text: str) -> Prompt:
    """Parse a pixel that is not the object's. Raises ArgumentTypeError."""
    point = parse_point(text)
    return Prompt(point.corners, point.t, point.object, is_positive=False)


def parse_box(text: str) -> Prompt:
    """Parse X0,Y0,X1,Y1,FRAME or X0,Y0,X1,Y1,FRAME,OBJECT. Raises ArgumentTypeError."""
    return parse_prompt(text, 2, "X0,Y0,X1,Y1,FRAME such as 100,80,300,240,0")


def parse_prompt(text: str, corners: int, expected: str) -> Prompt:
    """Parse the numbers of a prompt with so many corners. Raises ArgumentTypeError that names what was expected."""
    parts = text.split(",")
    try:
        if not 2 * corners + 1 <= len(parts) <= 2 * corners + 2:
            raise ValueError
        numbers = [float(part) for part in parts[: 2 * corners]]
        t, *object_number = (int(part) for part in parts[2 * corners :])
        if object_number and object_number[0] < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected {expected}, or with the number of an object behind"
        ) from None
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return Prompt(pairs, t, object_number[0] if object_number else None)
