"""The networks, in torch, and their export; never imported at run time."""
