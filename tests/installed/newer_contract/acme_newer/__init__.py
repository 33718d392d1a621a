"""A plugin made for a latentkit of years to come."""

requires_contract = 99
