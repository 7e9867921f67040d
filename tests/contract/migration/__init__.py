"""A guest that moves, and who may write to its disk meanwhile."""
