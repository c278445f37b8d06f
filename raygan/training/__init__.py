"""Training on Ray Train.

`train` runs in the driver: it checks the settings, opens the run, lets `trainer` set up Ray Train, and publishes the
best generator. Each worker runs the loop in `worker`: batches go through a `step`, made by `build`, whose losses come
from one of the `objectives`, whose random numbers from `draws`, and whose images from `augment` (`adaptive` says how
many); a GPU replays its `recording`. `schedule` says when something is due and how high the learning rates are,
`snapshots` draws how far the training is, `health` says whether it is alive, and `checkpoints` saves it. `monitor`
measures checkpoints, and `fresh` the result once more, on what did not choose it. All of them send `events` to the
driver, whose `progress` shows them and keeps the `history`, from which `plots` draws. `settings` and `presets/` say
what can be set; `registry` names the objectives.

Before and after: `source` finds the weights that a fine-tuning begins with, and `inherit` puts them into its networks.
`fresh` measures finished generators, by which `promotion` decides who is served.
"""
