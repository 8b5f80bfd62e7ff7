"""7. The formulas behind each claim, applied to the records of finished runs."""
