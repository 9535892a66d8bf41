"""Memory as an object that its user can read, recall, explain, forget, prove and move."""
