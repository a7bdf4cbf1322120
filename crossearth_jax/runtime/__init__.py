"""What all other packages build on: commands, progress, atomic files, device meshes, tables by parameter name."""
