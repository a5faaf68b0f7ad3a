"""Servers that answer or score for stages: what a machine says of them, starting and ending them, speaking to them."""
