"""2. base models, adapters, loss, generation."""
