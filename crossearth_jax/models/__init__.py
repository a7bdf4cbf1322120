"""The networks. Other packages use `network.SegmentationModel` and `style_network.StyleNetwork`: pure functions."""
