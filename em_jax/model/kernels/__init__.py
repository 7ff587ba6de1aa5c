"""Attention kernels of single devices' own, behind em_jax/model/attention.py."""
