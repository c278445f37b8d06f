"""Usefulness: when do generated images help a classifier, and when do they hurt?

`study` runs a grid of trainings, each a `trial`: real photos only, and with generated images added. `sets` trains the
generators, each on the real photos that it is to help, and finds the photos that neither saw, which validate. All
trainings see the same number of images. `statistics` averages over seeds, and `report` writes table and chart.
"""
