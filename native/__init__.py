"""llama.cpp's C interface, as far as surgery needs it. Nothing here knows what surgery is."""
