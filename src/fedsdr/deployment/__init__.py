"""11. A run between organisations, over Flower. Flower's private parts are touched here alone."""
