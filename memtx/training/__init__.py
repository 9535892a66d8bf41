"""Training: optimisers, the step, checkpoints, metrics, provenance and the workdir."""
