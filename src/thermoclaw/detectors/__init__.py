"""DETECT: views of the shared buffers that each answer one question."""
