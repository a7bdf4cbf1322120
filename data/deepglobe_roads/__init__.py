"""DeepGlobe Road Extraction: satellite images of 0.5 m with road masks."""
