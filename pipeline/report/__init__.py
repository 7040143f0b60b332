"""Reports: charts, pages, tables and pictures, made from results and from nothing else."""
