"""What the service knows about food: nutrients to Nutri-Score, probabilities to a 1–5 score, and tips.

Everything here is pure: plain data in, plain data out, with no Ray, HTTP, store or clock. The tables behind
it, and where each number comes from, are in ``models/tables``.
"""
