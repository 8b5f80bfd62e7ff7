"""The shape of the scores of a model."""

Scores = dict[str, dict[str, dict[str, float]]]
"""Model -> domain or "mean" -> metric -> value."""
