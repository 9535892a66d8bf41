"""Pretrained models: the tables and settings of each family, and loading and saving of weights."""
