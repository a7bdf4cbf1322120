"""Map a georeferenced scene of any size to a class map, in bounded memory.

`mapper` does the whole task. In the order in which data flow: `scene` reads windows of a raster as 8-bit RGB (`bands`
selects the bands, `validity` finds the valid pixels, `radiometry` converts values to 8 bit, and `grid` and
`resampling` change the ground resolution); `inference.windows` scores the windows and blends overlapping scores;
`map_layers` computes the values to write; `map_summary` measures the areas of the classes; `rasters` writes the layers
as Cloud Optimized GeoTIFFs; `polygons` and `preview` use the finished map.
"""
