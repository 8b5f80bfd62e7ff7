"""Station 6: what a model gets right on the clients' test examples, and what it says."""
