"""8. Tables and one self-contained page, made from the records in a run's folder and nothing else."""
