"""Hugging Face checkpoints in: a checkpoint folder or hub id, seen as the GGUF model that it becomes.

Whatever needs a package of the extras `hub` and `hf` is imported here, when it is needed, and nowhere else.
"""
