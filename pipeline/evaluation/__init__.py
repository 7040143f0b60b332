"""What a model does with a text: perplexity, KL divergence and their errors; speed behind a filled cache."""
