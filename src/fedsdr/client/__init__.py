"""Station 4: stages, one local update, what a client keeps and what it sends."""
