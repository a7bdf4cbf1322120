"""The named experiments, one per file; installed under the import name crossearth_configs."""
