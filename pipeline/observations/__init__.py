"""What a model saw of a text: sums, the files that keep them, and which text it was."""
