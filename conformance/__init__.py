"""Surgery held against llama.cpp's own programs, built from the sources that the pinned package carries."""
