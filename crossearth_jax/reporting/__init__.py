"""The parts of a run's report: reading a run, its numbers, tables, figures and pages."""
