"""Telling somebody that a result is there: a signed webhook, which never reaches into a private network."""
