"""HTTP: routes, request bodies and problem details. Decides nothing that a queue intake would need too."""
