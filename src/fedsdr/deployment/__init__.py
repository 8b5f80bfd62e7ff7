"""11. A run between organisations, over Flower. Only this package uses Flower's private APIs."""
