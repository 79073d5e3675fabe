"""Layers as files for other tools: atlases to paint on, plates, mattes, ST maps, tracks."""
