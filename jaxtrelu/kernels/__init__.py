"""Pallas kernels as plain array functions; each back end is imported only when it is used."""
