"""Studies over several models at once: what one run cannot tell, on one page (docs/studies.md).

path: one run's adapters over its training steps. sweep: one domain under several adapter shapes. chain: fine-tuning in
two stages. confound: domain against the source of its rows. dose: one domain's rows mixed with its benign twin's.
calibration: the organism's graded variants against what was planted. The command is `em-jax study NAME`.
"""
