"""The study of generalisation: the method beside its rivals on real domains (docs/generalisation.md)."""
