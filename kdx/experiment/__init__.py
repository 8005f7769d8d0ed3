"""Recipes, their stages and what a run leaves in its folder."""
