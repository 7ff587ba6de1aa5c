"""Training: examples to microbatches, loss, step, loop."""
