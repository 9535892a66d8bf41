"""Models: patterns, blocks, stacks, the language model, the encoder and the outputs."""
