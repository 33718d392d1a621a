"""Export a latent dataset item by item: check it, read its items, and write them in parts, so that
a stopped export can be resumed.
"""
