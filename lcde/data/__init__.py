"""Galleries, their files and kNN graphs, and the data sets that `dataset=` can name."""
