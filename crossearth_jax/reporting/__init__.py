"""The parts of a report: reading the files of a run, and its summary numbers, tables, figures and pages."""
