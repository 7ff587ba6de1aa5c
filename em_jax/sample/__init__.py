"""Sampling: decoding, the sampler, the scheduler, the engine, log-probabilities of choices."""
