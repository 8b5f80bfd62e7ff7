"""What server and clients exchange: the adapter as arrays, differential privacy, secure aggregation."""
