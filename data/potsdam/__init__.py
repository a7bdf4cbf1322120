"""ISPRS Potsdam: aerial true orthophotos of 5 cm, in red-green-blue and infrared-red-green."""
