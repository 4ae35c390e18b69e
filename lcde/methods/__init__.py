"""Methods: what clusters a gallery, with trained networks or without."""
