"""Find which pixels belong to an object: cues, refinement and quality of masks, and the note on their origin."""
