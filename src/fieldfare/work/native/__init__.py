"""The compiled core: local training of small models, one client per thread; from a plan of ops."""
