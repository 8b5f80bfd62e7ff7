"""1. examples, readers, built-in data, partition, prompts, batches, text checks."""
