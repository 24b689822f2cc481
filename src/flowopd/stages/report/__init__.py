"""The report of a run: one self-contained page that says whether it worked, and shows it.

Every number comes from the run's own files. A part that is not there yet leaves its section with a line that
says what is missing; a part that is there but damaged is an error.
"""
