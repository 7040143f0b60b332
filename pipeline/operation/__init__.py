"""The operation: a plan, the decomposition of one group under it, the file that is written."""
