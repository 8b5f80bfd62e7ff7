"""3. self-distillation: prompts, rewriting, checks, the cache, the paradox counts."""
