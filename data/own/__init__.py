"""Domains that a user describes in a `domains.toml`: from pictures, rasters and polygons to records.

In the order data flows: `images` and `truth` read parts of images and labels (`polygons` and `annotations` are about
labels that are drawn), `splits` and `plan` say which part goes where, `own_builder` writes the records.
"""
