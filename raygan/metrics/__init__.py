"""Numbers about images, on the CPU; torch and numpy only.

`distances` compares generated images with real ones by their feature vectors. `comparison` shares what several metrics
of one such pair need, `report_card` has the metrics of a report card, and `registry` has their names. `animals` asks
an ImageNet network how much of a cat or a dog an image shows. `classification` scores a classifier's
probabilities.
"""
