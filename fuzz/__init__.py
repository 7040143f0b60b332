"""Mutated files against everything that reads them: `python -m fuzz`, or `make fuzz`."""
