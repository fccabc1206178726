"""Exports of a finished run: raw rows in, labels out, without this package. The story is in `export.py`."""
