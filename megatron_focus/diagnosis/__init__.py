"""What is wrong with a machine or a cluster before a job starts: the parts of doctor and preflight.

The modules that ``tools/doctor.py`` begins with import the standard library alone: it has to run where the rest is
missing or broken.
"""
