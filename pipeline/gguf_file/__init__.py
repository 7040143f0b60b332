"""GGUF files, byte for byte: metadata, reading, writing."""
