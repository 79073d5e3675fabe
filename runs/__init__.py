"""What a run is made of: its model, how networks learn, its log, its clock, and how it is stopped."""
