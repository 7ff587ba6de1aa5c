"""What others wrote, kept within bounds: the worker that renders chat templates, guards of tokenizers and patterns."""
