"""Clustering of a kNN graph: arrays and `KNNGraph` in, labels out."""
