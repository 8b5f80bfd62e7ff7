"""8. Tables and one self-contained page, made only from the records in a run's folder."""
