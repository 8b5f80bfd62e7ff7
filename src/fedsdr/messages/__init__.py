"""What travels between server and clients: the adapter as arrays, and its differential privacy."""
