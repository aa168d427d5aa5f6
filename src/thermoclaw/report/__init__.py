"""SHOW: a record as pictures and as text. Nothing here loads torch; only the modules that draw load matplotlib."""
