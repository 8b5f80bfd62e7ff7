"""6. Scores of a model: exact answers, losses, benchmarks, judges."""
