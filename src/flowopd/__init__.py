"""Flow-OPD: several experts of a flow-matching model distilled into one, on the student's own samples."""
