"""Blue Marble: land cover across climates and seasons, from public-domain imagery of 6 MB."""
