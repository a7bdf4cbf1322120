"""From a georeferenced scene of any size to a class map on the same grid, in bounded memory.

In the order data flows: `scene` reads windows (`bands` and `radiometry` decide which numbers become 8-bit RGB),
`scoring` sends them through a model in batches, `mosaic` blends the overlapping scores, `product` writes Cloud
Optimized GeoTIFFs, `polygons` and `preview` are made from the finished map. This package and the dataset
builders read rasters, nothing else does.
"""
