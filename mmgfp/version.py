"""The version of mmgfp, read by ``setup.py`` without importing it."""

__version__ = '0.1.0'
