"""Qwen2, Qwen3 and Llama 3: layers, attention, the block, the sharding table, rematerialisation; kernels."""
