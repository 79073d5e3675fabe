"""Methods behind the two preprocess scripts: optical flow and masks, each imported only when chosen."""
