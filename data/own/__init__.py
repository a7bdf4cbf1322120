"""Build the domains that a user describes in a `domains.toml` from pictures, rasters and polygons.

In the order of the data flow: `images` and `truth` read parts of images and labels (`rasters`: labels in rasters,
`polygons`: vector files, `annotations`: exports of annotation tools), `splits` and `plan` assign tiles to splits,
`own_builder` writes the records.
"""
