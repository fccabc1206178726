"""Checkpoints: everything that a training depends on at one moment, in one file, to go on from there bit for bit."""
