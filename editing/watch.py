"""Watch painted files: whenever one is saved, the edited video is written again at half size."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from command_line import UserError, warn
from editing.render_edits import make_edits, write_edits
from editing.requests import EditRequest, Output, check_request
from rendering.frame_store import temporary_frame_store
from rendering.frames import map_frames
from rendering.trained_run import TrainedRun

POLL_S = 0.2  # Seconds between two looks at the files; a file that changes in between is still being saved.
SHRINK = 2  # Factor by which the sides of the frames are reduced.

Fingerprint = tuple[tuple[Path, int, int], ...]  # path, time and size of each file


def watch_edits(
    run: TrainedRun, request: EditRequest, folder: Path, wait: Callable[[float], None] = time.sleep
) -> None:
    """Write edited_NAME.mp4 and edited.png into `folder` at half size, now and whenever a painted file is saved.

    It ends with Ctrl-C. A file that cannot be read, for example while it is being saved, is named and read again when
    it changes. request: as the script made it; frames are edited at half of the working size. wait: sleeps for some
    seconds.
    """
    width, height = (max(2, side // SHRINK) for side in (run.clip.width, run.clip.height))
    small_run = replace(run, clip=replace(run.clip, width=width, height=height))
    request = replace(request, is_native=False)
    with temporary_frame_store(folder) as store:
        frames = map_frames(store.add, run.model, run.clip, run.full_range, False, (width, height))
        for _ in tqdm(frames, total=len(run.clip), desc="reading the mapping", unit="frame"):
            pass
        shown: Fingerprint | None = None  # of the files whose paint is in the video
        seen: Fingerprint | None = None  # of the files at the last look
        try:
            while True:
                now = read_fingerprint(request)
                if now != shown and now == seen:
                    shown, begin = now, time.perf_counter()
                    try:
                        check_request(request, run)
                        edits = make_edits(run, request, store.frames())
                        write_edits(small_run, request, folder, Output(), store, edits)
                        seconds = time.perf_counter() - begin
                        print(f"wrote {folder} in {seconds:.1f} s; save again to see more, Ctrl-C ends", flush=True)
                    except UserError as error:
                        warn(f"{error}; waiting for the next save")
                seen = now
                wait(POLL_S)
        except KeyboardInterrupt:
            print("ended; the same command without --watch writes the video at full size")


def read_fingerprint(request: EditRequest) -> Fingerprint:
    """Return the path, time and size of all painted files that are there."""
    paths = [edit.path for edit in request.atlas_edits]
    for edit in request.frame_edits:
        paths += [path for path in (edit.path, edit.mask_path, edit.shape_path) if path is not None]
    found = []
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:  # Some programs replace a file when they save it.
            continue
        found.append((path, status.st_mtime_ns, status.st_size))
    return tuple(found)
