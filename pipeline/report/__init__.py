"""The report of a study: a page, tables and pictures, made from its results and from nothing else."""
