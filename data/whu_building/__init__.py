"""WHU Building: aerial and satellite tiles with building masks."""
