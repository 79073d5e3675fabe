"""A video, or a folder of frames, to editable layers in one command."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import UserError, make_parser, resolve_folder_name, run_script
from config import MOST_OBJECTS

if TYPE_CHECKING:
    from config import Config
    from media.decoding import VideoFacts

FAST = Path(__file__).resolve().parent / "config" / "fast.json"
STAGES = ("frames", "masks", "flow", "layers")
MANY_FRAMES = 500
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def main(arguments: list[str] | None = None) -> None:
    """Frames, masks, flow, layers: each stage that is not done yet."""
    options = unwrap_flags().parse_args(arguments)
    check_flags(options)
    took: dict[str, float] = {}

    from preprocessing.flow import FlowRequest, write_clip_flow
    from preprocessing.mask_request import MaskRequest
    from preprocessing.masks import write_masks

    frames = frames_given(options, took) if options.input.is_dir() else frames_of_video(options, took)
    with stage("masks", took):
        method = options.method or ("import" if options.masks else "auto")
        request = MaskRequest(method, options.class_name, options.mask_weights, source=options.masks)
        write_masks(frames, replace(request, objects=options.objects))
    with stage("flow", took):
        write_clip_flow(frames, FlowRequest(flow_method(options), options.max_long_edge, options.flow_weights))
    with stage("layers", took):
        run = layers(options, frames)
    report(run, took)


def unwrap_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = make_parser(
        "Turn a video (mp4, mov, webm, gif, ...) or a folder of frames into editable layers. Four stages: frames,\n"
        "masks, flow, layers; what is done is not done again. Nothing but the Python packages is needed.",
        "python unwrap_video.py swan.mp4 --class_name bird",
    )
    flags.add_argument("input", type=Path, help="a video file, or a folder of frames")
    flags.add_argument("--name", help="of the clip's folders (default: the video's name and the part taken)")
    flags.add_argument("--class_name", default="anything", help="what moves: a COCO name such as person, dog, car")
    flags.add_argument("--masks", type=Path, help="your own masks: a folder of pictures, or a matte video")
    flags.add_argument(
        "--method",
        choices=("auto", "maskrcnn", "detectron2", "motion", "import"),
        help="how masks are found, see preprocess_mask_rcnn.py (default: auto, or import with --masks)",
    )
    flags.add_argument(
        "--objects",
        type=int,
        default=1,
        help="so many objects, 1 to 3, each in a layer (default: 1); "
        "told apart by a detector, or labels 1, 2, ... of --masks",
    )
    flags.add_argument("--mask_weights", type=Path, help="detector weights as a local file (default: downloaded once)")
    flags.add_argument(
        "--flow_method",
        choices=("auto", "raft", "dis", "raft-thirdparty"),
        help="see preprocess_optical_flow.py (default: auto on a GPU; dis without, where RAFT takes hours)",
    )
    flags.add_argument("--flow_weights", type=Path, help="RAFT weights as a local file (default: downloaded once)")
    flags.add_argument("--time_budget", type=float, default=180, help="seconds of loading and training (default: 180)")
    flags.add_argument("--start", type=float, default=0, help="seconds into the video (default: 0)")
    flags.add_argument("--end", type=float, help="seconds into the video (default: its end)")
    flags.add_argument("--every", type=int, default=1, help="take every second, third, ... frame (default: 1, all)")
    flags.add_argument(
        "--max_long_edge",
        type=int,
        default=768,
        help="longer side to work at, pixels (default: 768); the frames themselves keep their size",
    )
    flags.add_argument(
        "--max_frames", type=int, default=MANY_FRAMES, help=f"refuse longer clips (default: {MANY_FRAMES})"
    )
    flags.add_argument("--allow_cuts", action="store_true", help="train over scene cuts")
    flags.add_argument("--data_folder", type=Path, default=Path("data"), help="for frames, masks, flow (default: data)")
    flags.add_argument("--results_folder", type=Path, default=Path("results"), help="for the run (default: results)")
    return flags


def check_flags(options: argparse.Namespace) -> None:
    """Refuse numbers and combinations that make no sense."""
    for path in (options.input, options.masks):
        if path is not None and not path.exists():
            raise UserError(f"{path}: no such file or folder")
    if options.input.suffix.lower() in PICTURES:
        raise UserError(f"{options.input} is a picture; give a video, or the folder that holds the frames")
    least = {"start": 0, "time_budget": 1e-9, "every": 1, "max_long_edge": 16, "max_frames": 2}
    for name, smallest in least.items():
        value = getattr(options, name)
        if not smallest <= value < float("inf"):
            raise UserError(f"--{name} is {value}, expected at least {smallest:g}")
    if options.method == "import" and options.masks is None:
        raise UserError("--method import needs --masks, a folder of mask pictures or a matte video")
    if not 1 <= options.objects <= MOST_OBJECTS:
        raise UserError(f"--objects is {options.objects}, expected 1 to {MOST_OBJECTS}")
    if options.objects > 1 and options.method == "motion":
        raise UserError("--method motion finds one object; for several use a detector, or --masks with label pictures")
    if options.masks is not None and options.method not in (None, "import"):
        raise UserError(f"--masks brings masks along, --method {options.method} finds them; give one of the two")
    if options.input.is_dir() and (options.start or options.end is not None or options.every != 1 or options.name):
        raise UserError("--start, --end, --every and --name are for videos; put the frames you want into a folder")


@contextmanager
def stage(name: str, took: dict[str, float]) -> Iterator[None]:
    """Say which stage begins, and note how long it takes."""
    print(f"\n[{STAGES.index(name) + 1} of {len(STAGES)}] {name}", flush=True)
    started = time.perf_counter()
    yield
    took[name] = time.perf_counter() - started


def frames_given(options: argparse.Namespace, took: dict[str, float]) -> Path:
    """A folder of frames, looked through for scene cuts; used where it is."""
    import media
    from media.clip import open_clip
    from preprocessing.extract import check_cuts
    from preprocessing.scene_cuts import detect_cuts

    frames = resolve_folder_name(options.input)
    paths = media.list_images(frames)
    clip = open_clip(frames, config_for(options, frames, media.image_size(paths[0]) if paths else (1, 1)))
    announce(options, len(paths), media.image_size(paths[0]), has_to_extract=False)
    with stage("frames", took):
        check_cuts(detect_cuts(media.read_rgb(path) for path in paths), frames, options.allow_cuts, None)
        print(f"{len(paths)} frames, used where they are: {frames}; videos of them get {clip.fps:g} frames per second")
    return frames


def frames_of_video(options: argparse.Namespace, took: dict[str, float]) -> Path:
    """The frames of a video, in the data folder."""
    from media.decoding import video_facts
    from preprocessing.extract import Span, check_span, extract, read_clip_note

    span, facts = Span(options.start, options.end, options.every), video_facts(options.input)
    check_span(options.input, span, facts)
    folder = options.data_folder / (options.name or options.input.stem + span.name_suffix())
    is_there = folder.is_dir() and any(folder.iterdir())
    announce(options, span.frames(facts) or 0, (facts.width, facts.height), has_to_extract=not is_there)
    with stage("frames", took):
        if is_there:
            note = read_clip_note(folder)
            if note is None or not note.matches(options.input, span):
                raise UserError(f"{folder} holds frames of something else than this; give the clip another --name")
            print(f"{note.frames} frames are there already: {folder}")
        else:
            say_what_it_is(facts)
            note = extract(options.input, folder, span, options.allow_cuts, options.max_frames)
            print(f"wrote {note.frames} frames of {note.width} x {note.height}, {note.fps:g} per second: {folder}")
    return folder


def say_what_it_is(facts: "VideoFacts") -> None:
    """One line for each thing about a video that is not taken as it is."""
    if facts.rotation:
        print(f"the video is to be turned by {facts.rotation} degrees; frames are upright")
    if facts.is_variable:
        print(f"its frames are spaced unevenly; they are taken at its mean rate of {facts.fps:g} per second")
    if facts.has_audio:
        print("it has an audio track, which is noted with the frames")
    if facts.has_alpha:
        print("its opacity is left out; give the same file as --masks to use it as masks")


def announce(options: argparse.Namespace, count: int, native: tuple[int, int], has_to_extract: bool) -> None:
    """Refuse clips longer than anyone would wait for, and say what this one will take."""
    from preprocessing.estimate import Task, print_estimate
    from preprocessing.extract import too_many_frames

    if count > options.max_frames:
        raise UserError(too_many_frames(options.input, str(count), options.max_frames))
    scale = min(1.0, options.max_long_edge / max(native))
    working = tuple(max(1, round(side * scale)) for side in native)
    finder = {"import": None, "motion": "motion"}.get("import" if options.masks else options.method, "detector")
    flow = "dis" if flow_method(options) == "dis" else "raft"
    print_estimate(
        Task(count, native, working, has_to_extract, finder, flow, options.time_budget, options.objects),
        resolve_folder_name(options.input).parent if options.input.is_dir() else options.data_folder,
    )


def flow_method(options: argparse.Namespace) -> str:
    """The method that was asked for, or the one that suits the machine."""
    from unwrap_utils import pick_device

    if options.flow_method is None and options.flow_weights is not None:
        return "raft"
    return options.flow_method or ("auto" if pick_device().type == "cuda" else "dis")


def config_for(options: argparse.Namespace, frames: Path, native: tuple[int, int]) -> "Config":
    """The fast config for these frames of (width, height); the longer side is limited, the other one follows."""
    from config import load_config

    edge = min(options.max_long_edge, max(native))
    return replace(
        load_config(FAST),
        data_folder=str(frames),
        results_folder_name=str(options.results_folder),
        time_budget_s=options.time_budget,
        maximum_number_of_frames=options.max_frames,
        objects=options.objects,
        resx=edge if native[0] >= native[1] else None,
        resy=None if native[0] >= native[1] else edge,
    )


def layers(options: argparse.Namespace, frames: Path) -> Path:
    """Train and evaluate, or go on with the last run of the same settings; returns its folder."""
    import media
    from training.earlier_runs import find_newest_run, is_evaluated
    from training.loop import resume_run, start_run

    config = config_for(options, frames, media.image_size(media.list_images(frames)[0]))
    run = find_newest_run(config)
    if run is not None and is_evaluated(run, options.time_budget):
        print(f"trained and evaluated already: {run}")
        return run
    trainer = start_run(config) if run is None else resume_run(run, options.time_budget)
    trainer.run()
    return trainer.folder


def report(run: Path, took: dict[str, float]) -> None:
    """Say where everything lies, what it took, and how to edit it."""
    from training.earlier_runs import last_evaluation

    evaluation = last_evaluation(run)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    print(f"\ndone in {sum(took.values()):.0f} s ({stages})")
    print(f"open {run / 'preview.png'} and {evaluation / 'index.html'}")
    print(
        f'to edit: python export_atlas.py --trained_model_folder="{run}" --output_folder=atlas\n'
        "paint over one of its pictures in a layer of its own, and\n"
        f'python only_edit.py --trained_model_folder="{run}" --output_folder=edited --atlas=atlas '
        "--edit_foreground_path=painted.png"
    )


if __name__ == "__main__":
    run_script(main)
