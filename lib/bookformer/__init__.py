"""The library of the book Language Models You Can Run.

Small on purpose: every module can be read from top to bottom, in the order that README.md gives.
"""

__version__ = "0.1.0"
