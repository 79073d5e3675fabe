"""Exports for other tools: atlases to paint on, layers as image sequences, clean plates, ST maps, tracks."""
