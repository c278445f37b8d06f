"""Searches over training settings with Ray Tune.

In the order data flows: `space` reads what is searched, `tune` checks everything and opens the search, `search` starts
Ray Tune with a scheduler and a search algorithm, each `trial` is a real training that reports its KID, `progress` shows
how the search stands, `report` draws what it found, and the `winner` is measured once more.
"""
