"""What q, k and v read of the inputs, and how alike k and v, and layers, are in it."""
