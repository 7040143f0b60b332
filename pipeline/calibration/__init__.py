"""What a model sees of a text is taken, made into metrics, and errors are measured by what they cost."""
