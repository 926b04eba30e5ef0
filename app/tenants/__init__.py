"""Who may call, and what belongs to whom."""
