"""Training: sampled kNN edge pairs, the Lightning data module, callbacks and the set-up that all commands share."""
