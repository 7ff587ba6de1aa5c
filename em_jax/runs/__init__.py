"""One run directory and its stages: files, provenance, preflight, components, series, followers, dry run."""
