"""Evaluation: a method on a gallery gives a result; results become tables and files."""
