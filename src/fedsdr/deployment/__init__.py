"""11. A run between organisations, over Flower. Most of Flower's private APIs are used here."""
