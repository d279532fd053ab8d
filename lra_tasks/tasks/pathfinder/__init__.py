"""Pathfinder and Path-X."""
