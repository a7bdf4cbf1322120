"""CASID: satellite images of 1 m from four climates of Asia."""
