"""Massachusetts Roads: aerial images of 1 m with rasterised road centre lines."""
