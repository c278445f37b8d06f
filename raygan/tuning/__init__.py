"""Searches over trainings with Ray Tune: `tune` runs one, `space` is where it looks, `report` shows what it found."""
