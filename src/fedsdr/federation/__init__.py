"""9. One run, on any engine: Flower apps, in-process engine, checks before a run, exports after it."""
