"""GoogLeNet on real and generated images, on Ray Train and Ray Tune.

`classify` trains one, `usefulness` many to learn what generated images are good for; both take their images from
`mixture` and train by `lessons`. The network itself and its scores are in `raygan.judge`.
"""
