"""Blue Marble: land cover across climates and seasons, from public-domain imagery that fits in 6 MB."""
