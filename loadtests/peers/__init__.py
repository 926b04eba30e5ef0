"""The same job behind other servers, measured beside FoodDX: ``python -m loadtests.peers.run``.

One module a server, written the way its own documentation writes such a thing; all of them call job.py.
"""
