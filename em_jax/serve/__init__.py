"""`em-jax serve`: a run's models by OpenAI's protocol, so that anyone's harness can examine them."""
