"""The zoo: many programs × failures × seeds, to see what a diagnosis finds and when it cries wolf.

cases (which program, variant, fault, seed) → run (train once, keep the trace) → judge (diagnose each trace, rivals
too) → report (tables, pictures). The two steps in the middle do not know each other: rules can change and all traces
be judged again in a minute.

    python -m benchmarks.zoo list | run | judge | report
"""
