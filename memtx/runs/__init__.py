"""Runs: from a config to a trained, loaded, evaluated or planned model, with its data and presets."""
