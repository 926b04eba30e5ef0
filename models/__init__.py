"""What the scorer runs, where each number comes from, and the programs that build and evaluate it."""
