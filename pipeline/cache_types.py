"""The types that llama.cpp has for a KV cache."""

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")
"""From many bits a number to few."""
