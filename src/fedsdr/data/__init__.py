"""1. examples, readers, built-in data, partition, batches, text checks."""
