"""Does a run fit a TPU, how fast could it be, what does it cost: `python -m em_jax.plan`, with no TPU at hand."""
