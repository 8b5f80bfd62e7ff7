"""Station 8: the two Flower apps, the in-process grid, and the commands' work behind `cli`."""
