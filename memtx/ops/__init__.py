"""Mathematics on arrays: matrix memories, chunks, grids, hashes, searches and tables."""
