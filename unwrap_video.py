"""Turn a video, or a folder of frames, into editable layers with one command."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import (
    UserError,
    add_device_flag,
    check_seconds,
    check_writable,
    give_back_memory,
    make_parser,
    quote,
    resolve_folder_name,
    run_script,
)
from config import MOST_OBJECTS
from preprocessing.mask_request import MaskRequest, add_mask_kind_flag, add_prompt_flags, check_prompt_flags

if TYPE_CHECKING:
    from config import Config
    from media.decoding import VideoMetadata
    from preprocessing.extract import Span

FAST_CONFIG = Path(__file__).resolve().parent / "config" / "fast.json"
STAGES = ("frames", "masks", "flow", "layers")
MOST_COUNTED = 10_000  # Frames of a video that are counted before the message that there are too many.
DEFAULT_MAX_FRAMES = 2000
# Without a time budget a run gets so many seconds for each frame of at most USUAL_PIXELS, and at least LEAST_SECONDS.
# Larger frames get more, because alignment takes longer.
SECONDS_PER_FRAME, LEAST_SECONDS, USUAL_PIXELS = 1.0, 60.0, 768 * 432
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".tga", ".exr", ".dpx"}


def main(arguments: list[str] | None = None) -> None:
    """Run the stages frames, masks, flow and layers, each unless its files exist already."""
    options = make_unwrap_parser().parse_args(arguments)
    check_flags(options)
    seconds: dict[str, float] = {}  # by the name of the stage

    from preprocessing.flow import FlowRequest, write_clip_flow
    from preprocessing.masks import write_masks

    is_folder = options.input.is_dir()
    frames = check_given_frames(options, seconds) if is_folder else extract_video_frames(options, seconds)
    if options.strokes:
        check_strokes(options, frames)
    flow = FlowRequest(choose_flow_method(options), options.max_long_edge, options.flow_weights)
    write_flow = cache(lambda: write_clip_flow(frames, flow))  # Masks by motion need the flow first.
    with time_stage("masks", seconds):
        write_masks(frames, make_mask_request(options), write_flow)
    with time_stage("flow", seconds):
        print(f"the flow is in {write_flow()}")
    with time_stage("layers", seconds):
        run = train_layers(options, frames)
    print_result(run, seconds)


def make_unwrap_parser() -> argparse.ArgumentParser:
    """Return the argument parser of this script."""
    flags = make_parser(
        "Turn a video (mp4, mov, webm, gif, ...) or a folder of frames into editable layers. Four stages: frames,\n"
        "masks, flow, layers; a stage whose files exist is not done again. Only the Python packages are needed.",
        "python unwrap_video.py swan.mp4 --class_name bird",
    )
    flags.add_argument("input", type=Path, help="a video file, or a folder of frames")
    flags.add_argument("--name", help="name of the clip's folders (default: the video's name and the part)")
    add_mask_flags(flags)
    flags.add_argument(
        "--flow_method",
        choices=("auto", "raft", "dis", "raft-thirdparty"),
        help="see preprocess_optical_flow.py (default: auto on a GPU; dis without, where RAFT takes hours)",
    )
    flags.add_argument("--flow_weights", type=Path, help="RAFT weights as a local file (default: downloaded once)")
    flags.add_argument(
        "--time_budget",
        type=float,
        help="seconds of loading and training (default: one for each frame, and at least 60; more for a larger "
        "--max_long_edge)",
    )
    flags.add_argument("--time_per_100_frames", type=float, metavar="SECONDS", help="instead of --time_budget")
    add_frame_flags(flags)
    flags.add_argument("--data_folder", type=Path, default=Path("data"), help="for frames, masks, flow (default: data)")
    flags.add_argument(
        "--strokes",
        type=Path,
        metavar="FOLDER",
        help="PNGs named like their frames: red says object 1, black background, transparent nothing; a run that is "
        "finished is corrected in 20 more seconds",
    )
    flags.add_argument(
        "--full_evaluation",
        action="store_true",
        help="write all published videos, not four of them; only_evaluate.py does so, too",
    )
    add_device_flag(flags)
    flags.add_argument("--results_folder", type=Path, default=Path("results"), help="for the run (default: results)")
    return flags


def add_frame_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say which frames of the video are used, and at which size."""
    flags.add_argument("--start", type=float, default=0, help="seconds into the video (default: 0)")
    flags.add_argument("--end", type=float, help="seconds into the video (default: its end)")
    flags.add_argument(
        "--deinterlace",
        choices=("auto", "off"),
        default="auto",
        help="auto: frames that were recorded as two fields are made whole (default); off: they are kept",
    )
    flags.add_argument("--every", type=int, default=1, help="take every second, third, ... frame (default: 1, all)")
    flags.add_argument(
        "--max_long_edge",
        type=int,
        default=768,
        help="longer side to work at, pixels (default: 768); the frames themselves keep their size",
    )
    flags.add_argument(
        "--max_frames",
        type=int,
        default=DEFAULT_MAX_FRAMES,
        help=f"refuse longer clips (default: {DEFAULT_MAX_FRAMES})",
    )
    flags.add_argument("--allow_cuts", action="store_true", help="train over scene cuts")


def add_mask_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say what the object is, and how its masks are found."""
    flags.add_argument("--class_name", default="anything", help="what moves: a COCO name such as person, dog, car")
    flags.add_argument("--masks", type=Path, help="your own masks: a folder of pictures, or a matte video")
    flags.add_argument(
        "--method",
        choices=("auto", "sam2", "sam3", "maskrcnn", "detectron2", "motion", "import"),
        help="how masks are found, see preprocess_mask_rcnn.py (default: auto, or import with --masks)",
    )
    flags.add_argument(
        "--objects",
        type=int,
        default=1,
        help="number of objects, 1 to 3, each in a layer (default: 1); "
        "a detector finds them, or they are the labels 1, 2, ... of --masks",
    )
    add_mask_kind_flag(flags)
    add_prompt_flags(flags)
    flags.add_argument("--candidate", type=int, help="with --method motion: see preprocess_mask_rcnn.py")
    flags.add_argument(
        "--mask_weights",
        type=Path,
        help="detector weights as a local file, or those of SAM 2 or 3 as a folder (default: downloaded once)",
    )


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for values out of range and for flags that do not belong together."""
    for path in (options.input, options.masks, options.strokes):
        if path is not None and not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
    if options.input.suffix.lower() in PICTURE_SUFFIXES:
        raise UserError(f"{options.input} is a picture; give a video, or the folder that holds the frames")
    check_writable(options.results_folder)
    if options.input.is_file():
        check_writable(options.data_folder)
    minimum: dict[str, float] = {"start": 0, "every": 1, "max_long_edge": 16, "max_frames": 2}
    check_seconds(options, "time_budget", "time_per_100_frames")
    for name, least in minimum.items():
        value = getattr(options, name)
        if value is not None and not least <= value < float("inf"):
            raise UserError(f"--{name} is {value}, expected at least {least:g}")
    if options.time_budget is not None and options.time_per_100_frames is not None:
        raise UserError("--time_budget and --time_per_100_frames both say how long to train; give one of them")
    if options.method == "import" and options.masks is None:
        raise UserError("--method import needs --masks, a folder of mask pictures or a matte video")
    if not 1 <= options.objects <= MOST_OBJECTS:
        raise UserError(f"--objects is {options.objects}, expected 1 to {MOST_OBJECTS}")
    if options.objects > 1 and options.method == "motion":
        raise UserError("--method motion finds one object; for several use a detector, or --masks with label pictures")
    check_prompt_flags(options)
    if (options.prompts or options.text) and (options.masks is not None or options.method in ("motion", "import")):
        flag = options.prompts[0] if options.prompts else "--text"
        raise UserError(f"{flag}: says where to find an object, but its masks come from elsewhere; leave it out")
    if options.mask_kind is not None and options.masks is None:
        raise UserError("--mask_kind says how --masks are read; give masks, or leave it out")
    if options.mask_kind == "matte" and options.objects > 1:
        raise UserError("--mask_kind matte is for masks without labels; leave it out, or --objects")
    if options.masks is not None and options.method not in (None, "import"):
        raise UserError(f"--masks gives the masks, --method {options.method} finds them; give one of the two")
    if options.input.is_dir() and (options.start or options.end is not None or options.every != 1 or options.name):
        raise UserError("--start, --end, --every and --name are for videos; put the frames you want into a folder")


def make_mask_request(options: argparse.Namespace) -> MaskRequest:
    """Return the request for masks that the flags make."""
    return MaskRequest(
        method=options.method or ("import" if options.masks else "auto"),
        class_name=options.class_name,
        weights=options.mask_weights,
        prompts=tuple(options.prompts),
        text=options.text,
        candidate=options.candidate,
        objects=options.objects,
        source=None if options.masks is None else options.masks.resolve(),
        mask_kind=options.mask_kind,
    )


@contextmanager
def time_stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Print that a stage begins, and store how many seconds the body takes in `seconds`."""
    print(f"\n[{STAGES.index(name) + 1} of {len(STAGES)}] {name}", flush=True)
    started = time.perf_counter()
    yield
    give_back_memory()
    seconds[name] = time.perf_counter() - started


def check_given_frames(options: argparse.Namespace, seconds: dict[str, float]) -> Path:
    """Check a given folder of frames for scene cuts, and return it. The frames are used where they are."""
    import media
    from media.clip import open_clip
    from media.film import EXR_SUFFIX
    from preprocessing.extract import check_cuts
    from preprocessing.scene_cuts import detect_cuts

    frames = resolve_folder_name(options.input)
    paths = media.list_images(frames)
    size = media.image_size(paths[0]) if paths else (1, 1)
    clip = open_clip(frames, make_config(options, frames, size))  # raises UserError if there are no frames
    check_clip(options, len(paths), size, has_to_extract=False)
    with time_stage("frames", seconds):
        check_cuts(detect_cuts(media.read_rgb(path) for path in paths), frames, options.allow_cuts, None)
        if paths[0].suffix.lower() == EXR_SUFFIX:
            print("the frames are linear light; layers are learned from what a screen shows, edits keep the light")
        print(f"{len(paths)} frames, used where they are: {frames}; videos of them get {clip.fps:g} frames per second")
    return frames


def check_strokes(options: argparse.Namespace, frames: Path) -> None:
    """Raise UserError if the strokes cannot be used, before the stages that take long."""
    import media
    from masks.strokes import read_strokes
    from media.clip import open_clip

    config = make_config(options, frames, media.image_size(media.list_images(frames)[0]))
    read_strokes(options.strokes, open_clip(frames, config))


def extract_video_frames(options: argparse.Namespace, seconds: dict[str, float]) -> Path:
    """Extract the frames of a video into the data folder, and return their folder.

    Frames that were extracted before are used. Raise UserError if the folder holds other frames.
    """
    from media.clip import read_uneven_times
    from media.decoding import read_video_metadata
    from preprocessing.extract import Span, check_span, extract_frames, read_clip_note

    span = Span(options.start, options.end, options.every, deinterlace=options.deinterlace != "off")
    metadata = read_video_metadata(options.input)
    check_span(options.input, span, metadata)
    folder = options.data_folder / name_clip(options, span)
    has_frames = folder.is_dir() and any(folder.iterdir())
    count = span.count_frames(options.input, max(MOST_COUNTED, options.max_frames))
    check_clip(options, count, (metadata.width, metadata.height), has_to_extract=not has_frames)
    with time_stage("frames", seconds):
        if has_frames:
            note = read_clip_note(folder)
            if note is None or not note.matches(options.input, span):
                raise UserError(
                    f"{folder} holds frames of another video or of another part; give the clip another --name"
                )
            print(f"{note.frames} frames exist already: {folder}")
        else:
            print_conversions(metadata, span.deinterlace)
            note = extract_frames(options.input, folder, span, options.allow_cuts, options.max_frames)
            print(f"wrote {note.frames} frames of {note.width} x {note.height}, {note.fps:g} per second: {folder}")
            if read_uneven_times(folder, note.frames, note.fps):
                print("they are spaced unevenly in time; all videos made of them keep the time of each frame")
    return folder


def name_clip(options: argparse.Namespace, span: "Span") -> str:
    """Return the name of the clip's folders: as given, or that of the video and its part, shortened if it is too long.

    Raise UserError if a given name is too long.
    """
    import media

    name = options.name or options.input.stem + span.name_suffix()
    fitting = media.fit_clip_name(name, options.data_folder)
    if fitting == name:
        return name
    if options.name:
        raise UserError(f"--name {name}: is too long for the files that are named after it; give a shorter one")
    suffix = span.name_suffix()
    short = media.fit_clip_name(options.input.stem, options.data_folder, len(suffix.encode())) + suffix
    print(f"the name of the video is too long for the files that are named after it; they are named {short}")
    return short


def print_conversions(metadata: "VideoMetadata", deinterlace: bool) -> None:
    """Print one line for each property of a video that the extracted frames do not keep as it is."""
    if metadata.rotation:
        print(f"the video is stored turned by {metadata.rotation} degrees, or mirrored; frames are upright")
    if metadata.is_interlaced:
        made = "made whole (bwdif); --deinterlace off keeps them" if deinterlace else "kept as they are"
        print(f"its frames were recorded as two fields each, which are {made}")
    if metadata.hdr is not None:
        print(f"its dynamic range is high ({metadata.hdr}); it is brought to BT.709 with 8 bits (EETF of BT.2390)")
    if metadata.has_audio:
        print("it has an audio track, which is noted with the frames")
    if metadata.is_transparent:
        print("its opacity is left out; give the same file as --masks to use it as masks")


def check_clip(options: argparse.Namespace, count: int, native_size: tuple[int, int], has_to_extract: bool) -> None:
    """Raise UserError for too many frames, too little disk space, and masks that are asked for but not possible.

    Also print an estimate of the run.

    count: number of frames. native_size: (width, height) of the frames.
    """
    from media.images import fit_size
    from preprocessing.estimate import Task, print_estimate
    from preprocessing.extract import too_many_frames_message
    from preprocessing.mask_rcnn import WEIGHTS_URL
    from preprocessing.masks import check_request_fits_clip, may_find_by_motion
    from preprocessing.weights import is_downloaded

    if count > options.max_frames:
        number = str(count) if count <= MOST_COUNTED or options.input.is_dir() else f"more than {MOST_COUNTED}"
        raise UserError(too_many_frames_message(options.input, number, options.max_frames))
    request = make_mask_request(options)
    check_request_fits_clip(request, count, native_size)
    if options.masks or options.method == "import":
        mask_method = None
    else:
        mask_method = "motion" if options.method == "motion" else "detector"
    task = Task(
        frames=count,
        native_size=native_size,
        working_size=fit_size(native_size, options.max_long_edge),
        has_to_extract=has_to_extract,
        mask_method=mask_method,
        flow_method="dis" if choose_flow_method(options) == "dis" else "raft",
        time_budget_s=choose_time_budget(options, count, native_size),
        evaluation="full evaluation" if options.full_evaluation else "evaluation",
        objects=options.objects,
        may_find_by_motion=may_find_by_motion(request) and not is_downloaded(WEIGHTS_URL),
    )
    is_folder = options.input.is_dir()
    print_estimate(task, resolve_folder_name(options.input).parent if is_folder else options.data_folder)


def choose_time_budget(options: argparse.Namespace, frames: int, native_size: tuple[int, int]) -> float:
    """Return the seconds of loading and training that the flags ask for, for so many frames of (width, height)."""
    from media.images import fit_size

    if options.time_budget is not None:
        return float(options.time_budget)
    if options.time_per_100_frames is not None:
        return float(options.time_per_100_frames) * frames / 100
    width, height = fit_size(native_size, options.max_long_edge)
    return max(LEAST_SECONDS, SECONDS_PER_FRAME * frames * max(1, width * height / USUAL_PIXELS))


def choose_flow_method(options: argparse.Namespace) -> str:
    """Return the flow method of the flags. Without one, it is RAFT if weights are given or there is a GPU, else DIS."""
    from unwrap_utils import pick_device

    if options.flow_method is None and options.flow_weights is not None:
        return "raft"
    return options.flow_method or ("auto" if pick_device().type == "cuda" else "dis")


def make_config(options: argparse.Namespace, frames: Path, native_size: tuple[int, int]) -> "Config":
    """Return the fast config for frames of (width, height), with a longer side of at most --max_long_edge."""
    import media
    from config import load_config

    long_edge = min(options.max_long_edge, max(native_size))
    is_wide = native_size[0] >= native_size[1]
    return replace(
        load_config(FAST_CONFIG),
        data_folder=str(frames),
        results_folder_name=str(options.results_folder),
        time_budget_s=choose_time_budget(options, len(media.list_images(frames)), native_size),
        strokes_folder=str(options.strokes or ""),
        maximum_number_of_frames=options.max_frames,
        objects=options.objects,
        full_evaluation=options.full_evaluation,
        resx=long_edge if is_wide else None,
        resy=None if is_wide else long_edge,
    )


def train_layers(options: argparse.Namespace, frames: Path) -> Path:
    """Train and evaluate a run, or continue the newest run with the same settings. Return the folder of the run.

    Strokes serve a new run from the beginning, and correct one that is there after it is finished.
    """
    import media
    from evaluate import evaluate, has_full_set
    from rendering.trained_run import open_run
    from training.earlier_runs import find_newest_run, is_evaluated, last_evaluation
    from training.runs import Corrections, has_had_strokes, resume_run, start_run

    config = make_config(options, frames, media.image_size(media.list_images(frames)[0]))
    run, is_full = find_newest_run(config), options.full_evaluation
    if run is None:
        trainer = start_run(config, options.device)
        trainer.run()
        return trainer.folder
    assert config.time_budget_s is not None  # as make_config does it
    if is_evaluated(run, config.time_budget_s):
        print(f"trained and evaluated already: {run} (a larger --time_budget trains on)")
    else:
        resume_run(run, config.time_budget_s, options.device, full_evaluation=is_full).run()
    if options.strokes is not None and not has_had_strokes(run, options.strokes):
        resume_run(run, device=options.device, corrections=Corrections(options.strokes), full_evaluation=is_full).run()
    if is_full and not has_full_set(last_evaluation(run)):
        print("the videos that the earlier evaluation left out are written now")
        evaluate(open_run(run, device=options.device), last_evaluation(run))
    return run


def print_result(run: Path, seconds: dict[str, float]) -> None:
    """Print how long each stage took, which files to look at, and how to edit them."""
    from evaluate import has_full_set
    from training.earlier_runs import last_evaluation

    evaluation = last_evaluation(run)
    stages = ", ".join(f"{name} {duration:.0f} s" for name, duration in seconds.items())
    print(f"\ndone in {sum(seconds.values()):.0f} s ({stages})")
    more = "" if has_full_set(evaluation) else "; --full_evaluation writes more videos"
    print(f"open {run / 'preview.png'} and {evaluation / 'index.html'}{more}")
    print(
        f"to edit: python export_atlas.py --trained_model_folder={quote(run)} --output_folder=atlas\n"
        'paint in the layer "paint here" of atlas/foreground.ora, save it, and\n'
        f"python only_edit.py --trained_model_folder={quote(run)} --output_folder=edited "
        "--edit_foreground_path=atlas/foreground.ora"
    )


if __name__ == "__main__":
    run_script(main)
