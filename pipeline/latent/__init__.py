"""Latent attention: a Llama's keys and values as one small latent, in a file of llama.cpp's `deepseek2` architecture."""
