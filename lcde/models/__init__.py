"""The two networks, their scoring of whole graphs, and the Lightning module that trains them."""
