"""Memory as an object."""
