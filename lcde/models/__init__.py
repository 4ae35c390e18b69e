"""Trainable models: their networks, training losses, scores of whole graphs, and files."""
