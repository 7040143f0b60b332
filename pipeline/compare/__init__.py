"""Comparing: the grid of surgery and quantisation, the ledger of what was measured, the statistics of it."""
