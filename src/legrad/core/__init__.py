"""The pass through the running model: the only room that hooks into one, and undoes everything."""
