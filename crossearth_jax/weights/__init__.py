"""Weight files of every origin, to and from flat parameter dictionaries."""
