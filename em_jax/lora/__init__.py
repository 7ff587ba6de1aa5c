"""The LoRA adapter as its own pytree."""
