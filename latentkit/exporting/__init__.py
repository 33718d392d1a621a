"""Export of a latent dataset item by item: what is refused, what exporters are given, and writing
in parts that can be stopped and run again.
"""
