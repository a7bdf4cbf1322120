"""The networks, behind a functional door: segmentor.SegmentationModel."""
