"""Files: the cache, packages, GGUF files and the Hugging Face hub."""
