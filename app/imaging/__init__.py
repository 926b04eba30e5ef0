"""From the bytes of a photo to the model's input: guards, decoding, orientation, hashes.

Pure functions over bytes and arrays. Nothing here knows of Ray, HTTP, a store or torch.
"""
