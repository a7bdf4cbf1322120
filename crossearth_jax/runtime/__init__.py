"""Machinery under everything else: commands, progress, atomic files, device meshes, tables by name."""
