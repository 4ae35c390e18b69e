"""Clustering of a kNN graph: arrays and callables in, labels out."""
