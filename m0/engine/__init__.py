"""How prompts are scored: packed into batches, prefixes computed once and cached, in 8 bits, over several processes."""
