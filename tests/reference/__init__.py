"""Slow float64 references written from the equations, independent of every package of this repository."""
