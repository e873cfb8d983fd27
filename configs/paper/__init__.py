"""The paper's experiments, one module per row or figure."""
