"""The folder of a run: what is in it, what it says, and what is wrong."""
