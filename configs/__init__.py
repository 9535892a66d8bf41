"""Configs that are installed with memtx: `--config=lm:memory=xl,size=tiny`."""
