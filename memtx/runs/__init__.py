"""Runs: how to train, load, evaluate and plan the model of a config, with its data and presets."""
