"""Losses of segmentation and of masked image modelling."""
