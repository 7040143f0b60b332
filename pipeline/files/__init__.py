"""How files are opened and written: a file stays the one that was opened, output is complete or absent."""
