"""Pictures, as Vega-Altair charts that a page can embed and a file can hold."""
