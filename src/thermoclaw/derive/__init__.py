"""Raw inner products → the stored quantities: layers added up, what is remembered of earlier rows, shares. No torch."""
