"""7. The formulas behind each claim, applied to what finished runs left."""
