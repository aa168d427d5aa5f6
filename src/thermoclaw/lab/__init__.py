"""A small laboratory: real text, plain models and training arms, for the demo and the validation.

Nothing here is needed to observe a run of your own; it exists so that `thermoclaw demo` and `thermoclaw validate` need
neither a download nor another package. corpus → models → arms → intervention is the order in which they build on one
another.
"""
