"""What made files that the package ships; not part of it."""
