"""Runs of a solver that have ended, in files: what they say, and their steps."""
