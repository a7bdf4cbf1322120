"""ISPRS Vaihingen: aerial true orthophotos of 9 cm in infrared-red-green."""
