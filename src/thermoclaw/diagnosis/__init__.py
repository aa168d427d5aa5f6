"""DIAGNOSE: rules over a Record, findings, remedies and the report. No torch."""
