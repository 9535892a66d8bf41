"""Pretrained models: the names and settings of each family, and loading and saving their weights."""
