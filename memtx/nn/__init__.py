"""Modules with parameters: linear maps, norms, the feed-forward network, convolution, positions and attention."""
