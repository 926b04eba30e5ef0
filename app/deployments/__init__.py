"""What Ray runs: each a thin shell around a room that knows nothing of Ray."""
