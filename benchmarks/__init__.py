"""Measurements; they import `model` only, so they run on a bare GPU machine."""
