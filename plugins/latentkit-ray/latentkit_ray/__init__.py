"""Executor `ray` of latentkit: units are encoded by actors on a Ray cluster."""

requires_contract = 3
