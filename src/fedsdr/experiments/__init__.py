"""10. Many runs: grids of methods and seeds, their comparison, and measurements of finished runs."""
