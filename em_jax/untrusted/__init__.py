"""Limits for other people's files: a process that renders chat templates, guards for tokenizers and patterns."""
