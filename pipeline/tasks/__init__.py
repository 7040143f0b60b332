"""What a model can still do: tasks of lm-evaluation-harness, llama.cpp's own files, and what it finds in long texts."""
