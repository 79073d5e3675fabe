"""Find how each layer of a clip moves: optical flow without a network, point tracks, and transforms fitted to them."""
