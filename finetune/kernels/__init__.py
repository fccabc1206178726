"""Layers of Keras computed by TensorFlow's own kernels: the same mathematics, other rounding, in less time.

`native_kernels.py` is the entry, and holds the table of layers. Every other file is a kernel: its formula, where it
comes from, when it applies, and what Keras computes otherwise. The rest of the package does not know of them.
"""
