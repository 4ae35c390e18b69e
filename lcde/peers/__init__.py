"""Trained methods of the literature: each file holds the network and the rule of one."""
