"""How good models are on labelled photos: what is true, what they answer, every figure, and the report."""
