"""Many clips: what is to be done, on this computer or on a cluster, and one table of what came out."""
