"""Qwen2: layers, attention, the block, the sharding table, rematerialisation, presets; kernels behind one door."""
