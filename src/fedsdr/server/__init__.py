"""Station 5: guard, combination, server optimizer, checkpoints."""
