"""The embedded calibration model: its language, corpus, personas and pretraining."""
