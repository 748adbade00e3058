"""Weights, sizes, picture settings and adapters: from files into a model, and back."""
