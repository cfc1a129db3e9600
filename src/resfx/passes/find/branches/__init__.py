"""What lies in the branch of a residual add: its kind, its attention, what opens its parts."""
