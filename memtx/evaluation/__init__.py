"""Evaluation: losses, perplexity with carried and wiped state, recall, and scores of generated text."""
