"""3. the model rewrites the responses; prompts, checks, the cache, the paradox counts."""
