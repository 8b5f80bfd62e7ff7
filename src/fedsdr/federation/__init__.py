"""9. One run, on any engine: the two Flower apps, the in-process engine, checks before, exports after."""
