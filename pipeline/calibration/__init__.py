"""What a model sees of a text: statistics, the metrics made from them, and what errors were measured to cost."""
