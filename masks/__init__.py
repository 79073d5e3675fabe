"""Which pixels belong to the object: cues, refinement, the quality of masks, and where masks come from."""
