"""Encoders: choose codes for given codebooks."""
