"""Discriminative fine-tuning of pretrained TensorFlow/Keras networks."""

__version__ = "0.1.0"
