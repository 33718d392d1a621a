"""The source `sqlite` for latentkit."""

requires_contract = 2
"""The version of latentkit's plugin contract that this was made for; an older latentkit refuses it
with one clear message.
"""
