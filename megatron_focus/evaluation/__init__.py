"""Asking a release the questions of a benchmark, in parts, and scoring its answers."""
