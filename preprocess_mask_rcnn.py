"""Find or import rough masks of the moving object, one per frame, or refine existing ones."""

import argparse
from pathlib import Path

from command_line import UserError, make_parser, run_script
from preprocessing.mask_request import MaskRequest, add_mask_kind_flag, add_prompt_flags, check_prompt_flags


def main(arguments: list[str] | None = None) -> None:
    """Write NAME_maskrcnn/STEM.png for every frame. Masks that exist are used as they are."""
    options = make_mask_parser().parse_args(arguments)
    check_flags(options)

    from preprocessing.mask_refinement import refine_clip_masks
    from preprocessing.masks import write_masks

    if options.refine:
        refine_clip_masks(options.vid_path)
        return
    request = MaskRequest(
        method=options.method,
        class_name=options.class_name,
        weights=options.weights,
        instance=options.instance,
        candidate=options.candidate,
        prompts=tuple(options.prompts),
        text=options.text,
        objects=options.objects,
        source=None if options.masks is None else options.masks.resolve(),
        label=options.label,
        threshold=options.threshold,
        mask_kind=options.mask_kind,
    )
    write_masks(options.vid_path, request)


def make_mask_parser() -> argparse.ArgumentParser:
    """Return the argument parser of this script."""
    flags = make_parser(
        "Find the moving object in every frame and write rough masks, white inside: NAME_maskrcnn/STEM.png, and\n"
        "NAME_maskrcnn.png to look at. Masks that exist are kept; --refine refines them.",
        "python preprocess_mask_rcnn.py --vid-path data/swan --class_name bird",
    )
    flags.add_argument("--vid-path", type=Path, required=True, help="folder of frames")
    flags.add_argument(
        "--method",
        choices=("auto", "sam2", "sam3", "maskrcnn", "detectron2", "motion", "import"),
        default="auto",
        help="sam2: the object that you click on, see --point; it needs the package transformers. "
        "sam3: what --text names, with the same package; "
        "maskrcnn: torchvision's Mask R-CNN; detectron2: the published detector, if installed; motion: what moves "
        "against the background, needs no weights; import: masks of another program, see --masks; "
        "auto (default): sam2 with a point or a box, sam3 with a text, else maskrcnn; without its weights motion",
    )
    flags.add_argument(
        "--refine",
        action="store_true",
        help="refine existing masks by motion and colour; the given ones are kept in NAME_maskrcnn_rough",
    )
    flags.add_argument(
        "--class_name",
        default="anything",
        help="what to look for, a COCO name such as person, dog, car (an unknown one lists them all); "
        "'anything' (default) takes the surest object",
    )
    flags.add_argument(
        "--weights",
        type=Path,
        help="detector weights as a local file, or those of SAM 2 or 3 as a folder (default: downloaded once)",
    )
    add_prompt_flags(flags)
    flags.add_argument("--instance", type=int, help="which of the objects found, counting from 1, the surest first")
    flags.add_argument(
        "--candidate",
        type=int,
        help="motion: which of the candidates in NAME_maskrcnn_candidates.png, counting from 1 (default: 1)",
    )
    flags.add_argument(
        "--objects",
        type=int,
        default=1,
        help="number of objects, each also in NAME_maskrcnn_1, _2, ...; "
        "with import the labels 1, 2, ... of label pictures (default: 1)",
    )
    flags.add_argument("--masks", type=Path, help="import: folder of pictures, or a video (opacity or brightness)")
    flags.add_argument("--label", type=int, help="import: only this label of label pictures")
    flags.add_argument(
        "--threshold", type=float, help="import: hard masks, inside above this grey value, from 0 (black) to 1 (white)"
    )
    add_mask_kind_flag(flags)
    return flags


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for values out of range and for flags that do not belong together."""
    check_prompt_flags(options)
    imports = options.method == "import"
    if options.refine and (extra := list_given_choices(options)):
        raise UserError(f"--refine refines existing masks, --{extra[0]} finds new ones; give one of the two")
    usable = ("method", "masks", "objects") if imports else ("method", "masks", "candidate")
    if options.method in ("motion", "import") and (extra := list_given_choices(options, except_for=usable)):
        raise UserError(f"--{extra[0]} is for detectors; --method {options.method} does not use it; leave it out")
    if imports != (options.masks is not None):
        raise UserError("--masks PATH and --method import belong together; give both or neither")
    if given := [
        name for name in ("label", "threshold", "mask_kind") if getattr(options, name) is not None and not imports
    ]:
        raise UserError(f"--{given[0]} belongs to --method import; leave it out, or import masks")
    if imports and not options.masks.exists():
        raise UserError(f"{options.masks}: no such file or folder; --masks takes mask pictures or a matte video")
    if options.threshold is not None and not 0 <= options.threshold < 1:
        raise UserError(f"--threshold is {options.threshold}, expected a grey value from 0 (black) to below 1 (white)")
    for name in ("instance", "objects"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}, expected 1 or more")
    if options.label is not None and options.objects > 1:
        raise UserError("--label chooses one label, --objects several, from 1 on; give one of the two")
    if options.mask_kind == "matte" and (options.label is not None or options.objects > 1):
        raise UserError("--mask_kind matte is for masks without labels; leave it out, or --label and --objects")
    if options.prompts and options.instance is not None:
        raise UserError("--instance and --point both choose an object; give one of the two")


def list_given_choices(options: argparse.Namespace, except_for: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the given flags that choose how masks are found, without those in `except_for`."""
    defaults = {"method": "auto", "class_name": "anything", "objects": 1}
    names = ("method", "class_name", "weights", "instance", "prompts", "text", "candidate", "objects", "masks")
    given = [name for name in names if (getattr(options, name) or None) != defaults.get(name)]
    return ["point" if name == "prompts" else name for name in given if name not in except_for]


if __name__ == "__main__":
    run_script(main)
