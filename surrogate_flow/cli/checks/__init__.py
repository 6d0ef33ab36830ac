"""Recipes and options, checked before they are parsed."""
