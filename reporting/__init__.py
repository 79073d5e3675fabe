"""Pictures of a run for people: previews, plots, error maps, the page that shows them side by side."""
