"""The report card: generators against real photos.

`evaluate` finds the `candidates`, which are generators and baselines. `collect` draws their samples and asks networks
about them and about the real photos. `verdict` turns this into numbers, with the metrics of
`raygan.metrics.registry`. `report` puts the numbers and the images on a page.
"""
