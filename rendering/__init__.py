"""From a trained model to arrays: frames, atlas views, resizing, blending, and opening a run."""
