"""Usefulness: when do generated images help a classifier, and when do they hurt?

`study` runs a grid of trainings, each a `trial`: real photos only, with generated images added, for several sizes of
the real set, and generated images only. All see the same number of images and are validated on the same real photos.
`statistics` averages over seeds, and `report` writes table and chart.
"""
