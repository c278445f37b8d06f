"""Settings of trainings by name; each file says at its head what it is for."""
