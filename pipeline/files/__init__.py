"""What is read and written besides GGUF bytes: which file MODEL is, texts, output that is complete or absent, provenance."""
