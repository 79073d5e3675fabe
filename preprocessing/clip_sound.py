"""The sound that belongs to a clip: that of the video from which its frames were extracted."""

from pathlib import Path

from command_line import warn
from media.clip import Clip
from media.sound import Audio, find_track
from preprocessing.extract import read_clip_note

ROUNDING = 0.01  # Frames by which a time may be too short to count as one frame less.
FPS_TOLERANCE = 0.01  # Frames per second by which the speed of the clip may differ from its source and keep the sound.


def find_audio(clip: Clip) -> Audio | None:
    """Return the sound of the video from which the clip's frames were extracted.

    Returns None if the video is unknown or has no sound, and, with a warning, if it is missing or if the clip plays at
    another speed.
    """
    note = read_clip_note(clip.folder)
    if note is None or not note.has_audio:
        return None
    if abs(clip.fps - note.fps) > FPS_TOLERANCE:
        warn(f"the video is written at {clip.fps:g} frames per second instead of {note.fps:g}, without its sound")
        return None
    source = Path(note.source)
    if not source.is_file():
        warn(f"{source} does not exist any more, so the edited video is silent")
        return None
    track = find_track(source)
    if track is None:
        return None
    first_s = note.times_s[0] if note.times_s else note.start_s
    # Sound that begins earlier than the pictures is kept, in whole frames; the rest is cut off.
    lead_s = int((first_s - note.start_s) * note.fps + ROUNDING) / note.fps
    return Audio(source, first_s - lead_s, note.end_s, lead_s, track)
